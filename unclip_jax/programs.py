"""What is compiled of a bundle's parts: one program per stage and operation, on one device or on a mesh.

A program depends on specs, settings and shapes alone, so another prompt, seed or image never compiles again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from unclip_jax.bundle.parts import Part
from unclip_jax.conditioning import decoder_cond, drawing_whole
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.diffusion.guidance import ModelFn
from unclip_jax.diffusion.noise import KeyNoise
from unclip_jax.diffusion.samplers import X0Variance
from unclip_jax.images.degrade import LowRes
from unclip_jax.models import unet
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.unet import UNetCond, UNetSpec
from unclip_jax.parallel.layout import on_every_replica
from unclip_jax.sharding import mesh_of

Static = tuple[Any, ProcessSpec, tuple[int, ...], X0Variance | None]
"""Of a part: what selects a program."""


def static_of(part: Part) -> Static:
    """The part's spec, process, experts and statistics."""
    return part.spec, cast(ProcessSpec, part.process), part.experts, part.x0_variance


def program(num_static: int, num_weights: int) -> Callable[[Callable], Any]:
    """Compiles a function of static arguments, weights, rows (or None), and the noise of those rows (or None).

    Where the weights lie on a mesh (`unclip_jax.sharding.place`), every replica works on its own rows.
    """

    def decorate(stage: Callable) -> Callable:
        @functools.partial(jax.jit, static_argnums=tuple(range(1 + num_static)))
        def compiled(mesh: Mesh | None, *arguments: Any) -> Array:
            static, (*inputs, noise) = arguments[:num_static], arguments[num_static:]
            if mesh is None:
                return stage(*static, *inputs, noise)
            if noise is None:
                return on_every_replica(lambda *own: stage(*static, *own, None), mesh, num_weights)(*inputs)
            if not isinstance(noise, KeyNoise):
                raise ValueError(f"{type(noise).__name__} on a mesh; a replica draws its own noise: give KeyNoise")

            def replica(key: Array, *own: Any) -> Array:
                return stage(*static, *own[:-1], KeyNoise(key=key, indices=own[-1]))

            return on_every_replica(replica, mesh, 1 + num_weights)(noise.key, *inputs, noise.indices)

        def run(*arguments: Any) -> Array:
            return compiled(mesh_of(arguments[num_static]), *arguments)

        run.trace = lambda *arguments: compiled.trace(mesh_of(arguments[num_static]), *arguments)
        run.compiled = compiled
        return run

    return decorate


def pixel_model(static: Static, params: Params) -> ModelFn:
    """The U-Net of a part; with experts, the one that acts at t, which all rows share (`Part.experts`)."""
    spec, experts = cast(UNetSpec, static[0]), static[2]

    def model_fn(x_t: Array, t: Array, cond: Any) -> Array:
        if not experts:
            return unet.apply(spec, params, x_t, t, cond)
        networks = [functools.partial(unet.apply, spec, params[f"expert_{i}"]) for i in range(len(experts) + 1)]
        return jax.lax.switch(jnp.sum(t[0] >= jnp.asarray(experts)), networks, x_t, t, cond)

    return model_fn


def decoder_told(
    static: Static, clip_spec: CLIPSpec, captioned: bool, clip_params: Params, z_i: Array, tokens: Array, mask: Array
) -> UNetCond:
    """The decoder's conditions for whole images; with `captioned` False the captions are hidden, as on guidance's other
    side."""
    spec = cast(UNetSpec, static[0])
    cond = drawing_whole(spec, decoder_cond(spec, clip_spec, clip_params, z_i, tokens, mask), len(z_i))
    if captioned or cond.drop_text is None:
        return cond
    return dataclasses.replace(cond, drop_text=jnp.ones_like(cond.drop_text))


def upsampler_told(static: Static, low_res_size: int, images: Array) -> UNetCond:
    """An upsampler's condition for whole images."""
    spec = cast(UNetSpec, static[0])
    low_res = LowRes(scale=spec.image_size // low_res_size).condition(images)
    return drawing_whole(spec, UNetCond(low_res=low_res), len(images))
