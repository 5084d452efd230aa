"""Drawing what lies around an image: inpainting (`unclip_jax.editing.inpainting`) in one window after another.

A window has the size that the cascade draws, and at least half of it is known before it is filled. First those beside
the image are filled, which makes a band of the canvas's whole width; then windows above and below it, band after band:

(1)  from a known stretch [a, a + size):   a + size / 2, a + size, ..., the canvas's end - size, and likewise to 0
(2)  along a band:                         0, size / 2, size, ..., the canvas's end - size
"""

import dataclasses
from collections.abc import Iterator
from typing import cast

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import stages_until
from unclip_jax.diffusion.samplers.repaint import Resampling
from unclip_jax.editing.inpainting import BASE, inpaint
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.settings import StageSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Margins:
    """How far a canvas reaches beyond the image, in pixels of the size that is drawn."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __post_init__(self):
        margins = dataclasses.astuple(self)
        if min(margins) < 0 or max(margins) == 0:
            raise ValueError(f"margins must be at least 0, and one of them above; got {margins}")


def windows(size: int, margins: Margins) -> list[tuple[int, int]]:
    """Left and top of each window of `size` x `size` px, in the order in which they are filled.

    Coordinates are the canvas's, in which the image lies at (margins.left, margins.top).
    """
    last_left, last_top = margins.left + margins.right, margins.top + margins.bottom
    beside = [(left, margins.top) for left in _outward(margins.left, last_left, size // 2)]
    band = [*range(0, last_left, size // 2), last_left]
    return beside + [(left, top) for top in _outward(margins.top, last_top, size // 2) for left in band]


def _outward(start: int, last: int, step: int) -> list[int]:
    """Equation (1): places after `start` up to `last`, then those before it down to 0."""
    after, before = range(start + step, last, step), range(start - step, 0, -step)
    return [*after, *([last] if last > start else []), *before, *([0] if start > 0 else [])]


def outpaint(
    bundle: Bundle,
    images: Float[Array, "b size size 3"],
    margins: Margins,
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
) -> Iterator[Float[Array, "b H W 3"]]:
    """Fills the canvas window by window, and gives it after each; what is not filled yet is 0.

    The images themselves stay as they are, to the bit. Arguments and errors as of `inpaint`.
    """
    names = stages_until(bundle, stop_at, "decoder")
    size = cast(UNetSpec, bundle.parts[names[-1]].spec).image_size
    if images.shape[1:3] != (size, size):
        raise ValueError(f"the last stage draws {size} x {size} px; got {images.shape[1:3]}")
    if indices is None:
        indices = jnp.arange(len(images))
    left, top = margins.left, margins.top
    around = ((0, 0), (top, margins.bottom), (left, margins.right), (0, 0))
    canvas, unknown = jnp.pad(images, around), jnp.pad(jnp.zeros((size, size), bool), around[1:3], constant_values=True)
    places = windows(size, margins)
    for number, (x, y) in enumerate(places):
        here = slice(y, y + size), slice(x, x + size)
        hole = jnp.broadcast_to(unknown[here], images.shape[:3])
        # Every window of every image has noise of its own.
        *_, filled = inpaint(
            bundle,
            canvas[:, *here],
            hole,
            z_i,
            tokens,
            mask,
            key,
            captioned=captioned,
            indices=indices * len(places) + number,
            settings=settings,
            resampling=resampling,
            stop_at=stop_at,
        )
        canvas = canvas.at[:, *here].set(jnp.where(hole[..., None], filled.value, canvas[:, *here]))
        unknown = unknown.at[here].set(False)
        yield canvas
