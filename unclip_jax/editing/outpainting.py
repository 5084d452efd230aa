"""Outpainting: inpainting (`unclip_jax.editing.inpainting`) around an image, in one window after another.

A window has the size of the system's images, and at least half of it is known before it is filled. First those beside
the image are filled, which makes a band of the canvas's whole width; then windows above and below it, band after band:

(1)  from a known stretch [a, a + size):   a + size / 2, a + size, ..., the canvas's end - size, and likewise to 0
(2)  along a band:                         0, size / 2, size, ..., the canvas's end - size
"""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from unclip_jax.diffusion.samplers.repaint import Resampling
from unclip_jax.editing.inpainting import BASE, inpaint
from unclip_jax.stages.encoders import Arrays
from unclip_jax.systems.system import Settings, System


@dataclasses.dataclass(frozen=True, kw_only=True)
class Margins:
    """The margins of a canvas around the image, in pixels of the sampled size."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __post_init__(self):
        margins = dataclasses.astuple(self)
        if min(margins) < 0 or max(margins) == 0:
            raise ValueError(f"margins must be at least 0, and one of them above; got {margins}")


def windows(size: int, margins: Margins) -> list[tuple[int, int]]:
    """Return left and top of each window of `size` x `size` px, in the order in which they are filled.

    Coordinates are the canvas's, in which the image lies at (margins.left, margins.top).
    """
    last_left, last_top = margins.left + margins.right, margins.top + margins.bottom
    beside = [(left, margins.top) for left in _outward(margins.left, last_left, size // 2)]
    band = [*range(0, last_left, size // 2), last_left]
    return beside + [(left, top) for top in _outward(margins.top, last_top, size // 2) for left in band]


def _outward(start: int, last: int, step: int) -> list[int]:
    """Return, by equation (1), places after `start` up to `last`, then those before it down to 0."""
    after, before = range(start + step, last, step), range(start - step, 0, -step)
    return [*after, *([last] if last > start else []), *before, *([0] if start > 0 else [])]


def outpaint(
    system: System,
    images: Float[Array, "b size size 3"],
    margins: Margins,
    inputs: Arrays,
    key: Key[Array, ""],
    *,
    captioned: bool = True,
    indices: Int[Array, " b"] | None = None,
    settings: Settings | None = None,
    resampling: Resampling = BASE,
    until: str | None = None,
) -> Iterator[Float[Array, "b H W 3"]]:
    """Fill the canvas window by window, and give it after each; what is not filled yet is 0.

    The images themselves stay as they are, to the bit. Arguments and errors as of `inpaint`.
    """
    names = system.path(inputs, until)
    size = system.stage(names[-1]).network.sample_shape[0]
    if images.shape[1:3] != (size, size):
        raise ValueError(f"the last stage draws {size} x {size} px; got {images.shape[1:3]}")
    system.settings(names, settings)
    numbers = jnp.arange(len(images)) if indices is None else indices
    left, top = margins.left, margins.top
    around = ((0, 0), (top, margins.bottom), (left, margins.right), (0, 0))

    def canvases() -> Iterator[Float[Array, "b H W 3"]]:
        canvas = jnp.pad(images, around)
        unknown = jnp.pad(jnp.zeros((size, size), bool), around[1:3], constant_values=True)
        places = windows(size, margins)
        for number, (x, y) in enumerate(places):
            here = slice(y, y + size), slice(x, x + size)
            mask = jnp.broadcast_to(unknown[here], images.shape[:3])
            # Every window of every image has noise of its own.
            *_, filled = inpaint(
                system,
                canvas[:, *here],
                mask,
                inputs,
                key,
                captioned=captioned,
                indices=numbers * len(places) + number,
                settings=settings,
                resampling=resampling,
                until=until,
            )
            canvas = canvas.at[:, *here].set(jnp.where(mask[..., None], filled.value, canvas[:, *here]))
            unknown = unknown.at[here].set(False)
            yield canvas

    return canvases()
