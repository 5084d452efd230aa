"""Generating a part of an image anew, with any trained cascade (2204.06125, section 3).

(1) base:      with the image made small as what is known
(2) upsampler: the same at its own size, on (1) as its condition
(3) the image's own pixels outside the mask, to the bit

Known pixels take the place of sampled ones after every step (RePaint, 2201.09865), which any network allows.
If it was trained for inpainting, it is conditioned on the masked image as well. For an upsampler that is enough, and it
samples as ever; for a decoder it is not: z_i comes from the caption, does not depend on what is around the mask,
and dominates the network's prediction.

A small pixel of which any part lies under the mask counts as masked: no trace of what is to go is left.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.samplers.repaint import Resampling
from unclip_jax.diffusion.samplers.sampler import carries_only_x
from unclip_jax.images.resize import resize
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.encoders import Arrays
from unclip_jax.stages.operations import RepaintOptions, repaint_stage
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.stage import Stage
from unclip_jax.systems.system import MakeStep, Settings, StageOutput, Step, System, run

BASE = Resampling(jump=5, times=5)
"""Half of RePaint's own 10 and 10, since the decoder takes tens of steps, not RePaint's 250."""
DETAIL = Resampling(times=1)
"""Of the upsamplers, whose condition has settled what fits what."""


def inpaint(
    system: System,
    images: Float[Array, "b h w 3"],
    mask_to_fill: Bool[Array, "b h w"],
    inputs: Arrays,
    key: Key[Array, ""],
    *,
    captioned: bool = True,
    indices: Int[Array, " b"] | None = None,
    settings: Settings | None = None,
    resampling: Resampling = BASE,
    until: str | None = None,
) -> Iterator[StageOutput]:
    """Fill what the mask covers with what the captions say, stage by stage.

    Args:
        images: in [-1, 1], of the size of the last stage that runs; under the mask they have no effect.
        mask_to_fill: True where to generate.
        inputs: z_i [b d] of the whole images as they are to be, from the prior for instance; tokens, mask [b n].
        captioned: whether the decoder is conditioned on the captions.
        resampling: of the decoder.
        key, indices, settings, until: as in `unclip_jax.systems.run`.

    Raises:
        UserError: a mask is empty, RePaint has a sampler that looks back at steps before, or what `run` raises.
        ValueError: images or masks have another size.
    """
    make = inpainting_step(
        system, images, mask_to_fill, inputs, captioned=captioned, resampling=resampling, until=until
    )
    return run(system, inputs, key, until=until, indices=indices, settings=settings, step=make)


def inpainting_step(
    system: System,
    images: Float[Array, "b h w 3"],
    mask_to_fill: Bool[Array, "b h w"],
    inputs: Arrays,
    *,
    captioned: bool = True,
    resampling: Resampling = BASE,
    until: str | None = None,
) -> MakeStep:
    """Make the step of every stage for inpainting; arguments and errors as of `inpaint`."""
    last = system.stage(system.path(inputs, until)[-1])
    size = last.image_size
    if images.shape[1:3] != (size, size) or mask_to_fill.shape != images.shape[:3]:
        found = f"{images.shape[1:3]}, masks {mask_to_fill.shape[1:]}"
        raise ValueError(f"the last stage draws {size} x {size} px; got {found}")
    if not bool(jnp.all(jnp.any(mask_to_fill, axis=(1, 2)))):
        raise UserError("the mask marks nothing to draw; mark where to draw in white")

    def make(name: str, stage: Stage, own: SamplingSettings) -> Step:
        assert isinstance(stage, DiffusionStage)
        if not can_inpaint(stage, own):
            raise UserError(f"{name}: sampler is {own.sampler}, which cannot inpaint; set it to ddim or ddpm")
        side = stage.network.sample_shape[0]
        without = () if captioned else ("caption",)
        again = _resampling(stage, resampling)
        rows = {"known_image": resize(images, side, "area"), "mask_to_fill": resize_mask(mask_to_fill, side)}
        return Step(repaint_stage, RepaintOptions(settings=own, without=without, resampling=again), rows)

    return make


def with_inpainting_sampler(system: System, settings: Settings) -> dict[str, SamplingSettings]:
    """Return `settings`, with 50 evenly spaced steps of DDIM for a stage whose sampler cannot inpaint."""
    ddim: dict[str, Any] = {"sampler": "ddim", "steps": 50, "spacing": "linspace"}
    return {
        name: own if _is_free(system.stage(name), own) else dataclasses.replace(own, **ddim)
        for name, own in settings.items()
    }


def resize_mask(mask: Bool[Array, "b h w"], size: int) -> Bool[Array, "b {size} {size}"]:
    """Resize the mask: a pixel of which any part is masked is masked."""
    return resize(mask[..., None].astype(jnp.float32), size, "area")[..., 0] > 0


def can_inpaint(stage: DiffusionStage, settings: SamplingSettings) -> bool:
    """Return whether the stage does without RePaint, or has a sampler of single steps for it."""
    return _resampling(stage, BASE) is None or carries_only_x(settings.build_sampler(stage.x0_variance))


def _is_free(stage: DiffusionStage, settings: SamplingSettings) -> bool:
    return stage.image_size is None or can_inpaint(stage, settings)


def _resampling(stage: DiffusionStage, resampling: Resampling) -> Resampling | None:
    """Return the resampling of a stage, None for one that needs no RePaint."""
    if not any(array.startswith("image_") for array in stage.reads):
        return resampling
    return None if "masked_image" in stage.network.cond_fields else DETAIL
