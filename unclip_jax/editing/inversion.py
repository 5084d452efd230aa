"""The noise that the decoder turns into a given image (2204.06125, section 3): with z_i, a full description of it.

(1) x_T = DDIM^-1(image; z_i, y),   DDIM(x_T; z_i, y) = image

Nothing is clipped on either way, and both are guided alike: by default not at all, since guidance bends the path down
more than the steps back up can follow.
"""

import dataclasses

from jaxtyping import Array, Float

from unclip_jax.core.errors import UserError
from unclip_jax.stages.encoders import Arrays
from unclip_jax.stages.operations import InvertOptions, invert_stage
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems.system import Step, System, program_of

CORRECTIONS = 1
"""Of each step; see `unclip_jax.diffusion.samplers.inversion`."""


def inversion_settings(steps: int = 50, guidance_scale: float = 1.0, eta: float = 0.0) -> SamplingSettings:
    """Return the decoder's settings that reconstruct an inverted image (eta = 0), or vary it."""
    return SamplingSettings(sampler="ddim", steps=steps, guidance_scale=guidance_scale, eta=eta, threshold="none")


def invert(
    system: System,
    images: Float[Array, "b h w 3"],
    inputs: Arrays,
    settings: SamplingSettings,
    *,
    captioned: bool = False,
    corrections: int = CORRECTIONS,
) -> Float[Array, "b h w 3"]:
    """Find x_T of images in [-1, 1] of the decoder's size, for sampling with the same inputs and settings.

    Args:
        inputs: what the decoder reads: z_i [b d], tokens and mask [b n].
        settings: DDIM, as `inversion_settings` has it; eta is what it will be sampled with, and counts as 0 here.
        captioned: whether the decoder is conditioned on the captions.
        corrections: network evaluations of each step beyond the first.

    Raises:
        UserError: the settings are not DDIM's or of one step, or the bundle has no decoder.
        ValueError: the images have another size.
    """
    name = system.reader("z_i")
    size = system.stage(name).image_size
    if images.shape[1:3] != (size, size):
        raise ValueError(f"this decoder draws {size} x {size} px; got {images.shape[1:3]}")
    if settings.sampler != "ddim":
        raise UserError(f"sampler is {settings.sampler}; only ddim can be inverted")
    if settings.steps < 2:
        raise UserError(f"steps is {settings.steps}; an inversion takes at least 2")
    options = InvertOptions(
        settings=dataclasses.replace(settings, eta=0.0),
        without=() if captioned else ("caption",),
        corrections=corrections,
    )
    return program_of(system, name, Step(invert_stage, options, {"known_image": images}), inputs, None)()
