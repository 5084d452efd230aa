"""Any image through the upsamplers of a cascade, which hear no caption.

(1) x_next ~ upsampler(x)     as equation (3) of `unclip_jax.cascade`
"""

from collections.abc import Iterator
from typing import cast

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import Drawn, choose_settings, stage_noise, upsample
from unclip_jax.core.errors import UserError
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.settings import StageSettings


def upscaling_stages(bundle: Bundle, from_size: int | None = None, stop_at: int | None = None) -> list[str]:
    """The upsamplers that take images of `from_size` px to images of `stop_at` px; first and last by default.

    Raises UserError where the bundle has none such.
    """
    names = sorted(name for name, part in bundle.parts.items() if part.kind == "upsampler")
    if not names:
        raise UserError(f"bundle {bundle.name} has no upsamplers; use one that has some")
    starts = [cast(int, bundle.parts[name].low_res_size) for name in names]
    ends = [cast(UNetSpec, bundle.parts[name].spec).image_size for name in names]
    if from_size is not None and from_size not in starts:
        sizes = ", ".join(map(str, starts))
        raise UserError(f"from_size is {from_size}; bundle {bundle.name} starts from {sizes} px")
    first = 0 if from_size is None else starts.index(from_size)
    if stop_at is not None and stop_at not in ends[first:]:
        sizes = ", ".join(map(str, ends[first:]))
        raise UserError(f"stop_at is {stop_at}; from {starts[first]} px bundle {bundle.name} makes {sizes} px")
    return names[first : len(names) if stop_at is None else ends.index(stop_at) + 1]


def upscale(
    bundle: Bundle,
    images: Float[Array, "b h w 3"],
    key: Key[Array, ""],
    *,
    indices: Int[Array, " b"] | None = None,
    settings: dict[str, StageSettings] | None = None,
    stop_at: int | None = None,
) -> Iterator[Drawn]:
    """Equation (1), stage by stage, from the upsampler that starts from images of this size.

    Arguments as of `unclip_jax.cascade.cascade`. Raises UserError as `upscaling_stages`, and for settings out of range.
    """
    names = upscaling_stages(bundle, images.shape[1], stop_at)
    chosen = choose_settings(bundle, names, settings)
    if indices is None:
        indices = jnp.arange(len(images))
    for name in names:
        images = upsample(bundle.parts[name], images, stage_noise(key, name, indices), chosen[name])
        yield Drawn(name, images)
