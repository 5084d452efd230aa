"""Drawing a part of an image anew, by any trained cascade (2204.06125, section 3).

(1) base:      with the image made small as what is known
(2) upsampler: the same at its own size, on (1) as its condition
(3) the image's own pixels outside the hole, to the bit

Known pixels take the place of those drawn after every step (RePaint, 2201.09865), which asks nothing of the network. If
it was trained to inpaint (`UNetSpec.inpaints`), it is told what is known as well. For an upsampler that is enough, and
it draws as ever; for a decoder it is not: z_i comes from the caption, knows nothing of what is around the hole, and is
what the network would follow.

A small pixel of which any part lies in the hole counts as hole: no trace of what is to go is left in what is known.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from unclip_jax.bundle.parts import Bundle, Part
from unclip_jax.cascade import Drawn, choose_settings, stage_noise, stages_until
from unclip_jax.conditioning import known_part
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.noise import NoiseSource
from unclip_jax.diffusion.samplers import sample
from unclip_jax.diffusion.samplers.repaint import Resampling, repaint
from unclip_jax.images.resize import resize
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.unet import UNetCond, UNetSpec
from unclip_jax.programs import Static, decoder_told, pixel_model, program, static_of, upsampler_told
from unclip_jax.stages.settings import StageSettings

BASE = Resampling(jump=5, times=5)
DETAIL = Resampling(times=1)
"""Of the upsamplers, whose condition has settled what fits what."""


def inpaint(
    bundle: Bundle,
    images: Float[Array, "b h w 3"],
    hole: Bool[Array, "b h w"],
    z_i: Float[Array, "b d"],
    tokens: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
    key: Key[Array, ""],
    *,
    captioned: bool = True,
    indices: Int[Array, " b"] | None = None,
    settings: dict[str, StageSettings] | None = None,
    resampling: Resampling = BASE,
    stop_at: int | None = None,
) -> Iterator[Drawn]:
    """Draws what the captions say into the holes, stage by stage.

    Args:
        images: in [-1, 1], of the size of the last stage that runs; in the holes they have no effect.
        hole: where to draw.
        z_i: of the whole images as they are to be, from the prior for instance.
        resampling: of the decoder.
        key, captioned, indices, settings, stop_at: as in `unclip_jax.cascade.decode`.

    Raises:
        UserError: a hole is empty, RePaint has a sampler that looks back at steps before, or what `decode` raises.
        ValueError: images or holes have another size.
    """
    names = stages_until(bundle, stop_at, "decoder")
    chosen = choose_settings(bundle, names, settings)
    size = cast(UNetSpec, bundle.parts[names[-1]].spec).image_size
    if images.shape[1:3] != (size, size) or hole.shape != images.shape[:3]:
        raise ValueError(f"the last stage draws {size} x {size} px; got {images.shape[1:3]}, holes {hole.shape[1:]}")
    if not bool(jnp.all(jnp.any(hole, axis=(1, 2)))):
        raise UserError("the mask marks nothing to draw; mark where to draw in white")
    for name in names:
        if not _can_inpaint(bundle.parts[name], chosen[name]):
            raise UserError(f"{name}: sampler is {chosen[name].sampler}, which cannot inpaint; set it to ddim or ddpm")
    if indices is None:
        indices = jnp.arange(len(images))
    drawn = None
    for name in names:
        part, noise = bundle.parts[name], stage_noise(key, name, indices)
        own = cast(UNetSpec, part.spec).image_size
        known, is_hole = resize(images, own, "area"), shrink_hole(hole, own)
        if name == "decoder":
            clip_part = bundle.part("clip")
            static = static_of(part), clip_part.spec, chosen[name], captioned, resampling
            rows = z_i, tokens, mask, known, is_hole
            drawn = _inpaint_decoder(*static, part.params, clip_part.params, *rows, noise)
        else:
            low_res_size = cast(int, part.low_res_size)
            static = static_of(part), low_res_size, chosen[name]
            drawn = _inpaint_upsampler(*static, part.params, cast(Array, drawn), known, is_hole, noise)
        yield Drawn(name, drawn)


def suited(bundle: Bundle, settings: dict[str, StageSettings]) -> dict[str, StageSettings]:
    """`settings`, with 50 evenly spaced steps of DDIM for a stage whose sampler cannot inpaint."""
    return {
        name: how
        if name == "prior" or _can_inpaint(bundle.parts[name], how)
        else dataclasses.replace(how, sampler="ddim", steps=50, spacing="linspace")
        for name, how in settings.items()
    }


def _can_inpaint(part: Part, how: StageSettings) -> bool:
    """Whether the stage does without RePaint, or has a sampler of single steps for it."""
    told = part.kind == "upsampler" and cast(UNetSpec, part.spec).inpaints
    return told or not how.algorithm(part.x0_variance).is_multistep


def shrink_hole(hole: Bool[Array, "b h w"], size: int) -> Bool[Array, "b {size} {size}"]:
    """The hole at another size: whatever touches it."""
    return resize(hole[..., None].astype(jnp.float32), size, "area")[..., 0] > 0


@program(5, 2)
def _inpaint_decoder(
    static: Static,
    clip_spec: CLIPSpec,
    how: StageSettings,
    captioned: bool,
    resampling: Resampling,
    params: Params,
    clip_params: Params,
    z_i: Array,
    tokens: Array,
    mask: Array,
    known: Array,
    hole: Array,
    noise: NoiseSource,
) -> Array:
    cond = decoder_told(static, clip_spec, captioned, clip_params, z_i, tokens, mask)
    if cast(UNetSpec, static[0]).inpaints:
        cond = dataclasses.replace(cond, known=known_part(known, hole))
    return _repaint(static, how, params, cond, known, hole, resampling, noise)


@program(3, 1)
def _inpaint_upsampler(
    static: Static,
    low_res_size: int,
    how: StageSettings,
    params: Params,
    images: Array,
    known: Array,
    hole: Array,
    noise: NoiseSource,
) -> Array:
    cond = upsampler_told(static, low_res_size, images)
    if not cast(UNetSpec, static[0]).inpaints:
        return _repaint(static, how, params, cond, known, hole, DETAIL, noise)
    cond = dataclasses.replace(cond, known=known_part(known, hole))
    drawn = sample(
        how.build(static[1]),
        how.guide(static[1], pixel_model(static, params)),
        cond,
        how.algorithm(static[3]),
        noise,
        shape=known.shape,
        threshold=how.clip(1.0),
    )
    return jnp.where(hole[..., None], drawn, known)


def _repaint(
    static: Static,
    how: StageSettings,
    params: Params,
    cond: UNetCond,
    known: Array,
    hole: Array,
    resampling: Resampling,
    noise: Any,
) -> Array:
    return repaint(
        how.build(static[1]),
        how.guide(static[1], pixel_model(static, params)),
        cond,
        how.algorithm(static[3]),
        noise,
        known=known,
        is_known=~hole[..., None],
        resampling=resampling,
        threshold=how.clip(1.0),
    )
