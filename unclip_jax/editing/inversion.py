"""The noise that the decoder turns into a given image (2204.06125, section 3): with z_i, all there is to know of it.

(1) x_T = DDIM^-1(image; z_i, y),   DDIM(x_T; z_i, y) = image
(2) PSNR = 10 log10(255^2 / mean squared error)     of uint8 images, in dB: how near what comes back is

Nothing is clipped on either way, and both are guided alike: by default not at all, since guidance bends the way down
more than the steps back up can follow.
"""

import dataclasses
from typing import cast

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from unclip_jax.bundle.parts import Bundle
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.samplers import DDIM
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.programs import Static, decoder_told, pixel_model, program, static_of
from unclip_jax.stages.settings import StageSettings

CORRECTIONS = 1
"""Of each step; see `unclip_jax.diffusion.samplers.inversion`."""


def faithful(steps: int = 50, guidance_scale: float = 1.0, eta: float = 0.0) -> StageSettings:
    """The decoder's settings under which an inverted image comes back (eta = 0), or comes near."""
    return StageSettings(sampler="ddim", steps=steps, guidance_scale=guidance_scale, eta=eta, threshold="none")


def invert(
    bundle: Bundle,
    images: Float[Array, "b h w 3"],
    z_i: Float[Array, "b d"],
    tokens: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
    how: StageSettings,
    *,
    captioned: bool = False,
    corrections: int = CORRECTIONS,
) -> Float[Array, "b h w 3"]:
    """x_T of images in [-1, 1] of the decoder's size, for `decode` with the same conditions and settings.

    Args:
        how: DDIM, as `faithful` has it; eta is what it will be drawn with, and counts as 0 here.
        captioned: whether the decoder is told the captions.
        corrections: network evaluations of each step beyond the first.

    Raises:
        UserError: the settings are not DDIM's or of one step, or the bundle has no decoder.
        ValueError: the images have another size.
    """
    part, clip_part = bundle.part("decoder"), bundle.part("clip")
    size = cast(UNetSpec, part.spec).image_size
    if images.shape[1:3] != (size, size):
        raise ValueError(f"this decoder draws {size} x {size} px; got {images.shape[1:3]}")
    if how.sampler != "ddim":
        raise UserError(f"sampler is {how.sampler}; only ddim can be inverted")
    if how.steps < 2:
        raise UserError(f"steps is {how.steps}; an inversion takes at least 2")
    weights = part.params, clip_part.params
    how = dataclasses.replace(how, eta=0.0)
    static = static_of(part), clip_part.spec, how, captioned, corrections
    return _invert_program(*static, *weights, z_i, tokens, mask, images, None)


def psnr(images: UInt8[np.ndarray, "n h w c"], others: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """Equation (2), image by image; infinite where two are the same."""
    error = np.mean(np.square(images.astype(np.float64) - others), axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


@program(5, 2)
def _invert_program(
    static: Static,
    clip_spec: CLIPSpec,
    how: StageSettings,
    captioned: bool,
    corrections: int,
    params: Params,
    clip_params: Params,
    z_i: Array,
    tokens: Array,
    mask: Array,
    images: Array,
    noise: None,
) -> Array:
    del noise
    process = static[1]
    return samplers.invert(
        how.build(process),
        how.guide(process, pixel_model(static, params)),
        decoder_told(static, clip_spec, captioned, clip_params, z_i, tokens, mask),
        cast(DDIM, how.algorithm()),
        images,
        corrections=corrections,
        threshold=how.clip(1.0),
    )
