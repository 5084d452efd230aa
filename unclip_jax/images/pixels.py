"""Images at the edge of the program: uint8 pixels, and grids of them.

Inside, images are float32 in [-1, 1]; on disk they are uint8. The one conversion, used everywhere:

(1) x = u / 127.5 - 1
(2) u = round(127.5 (clip(x, -1, 1) + 1))
"""

import math
from typing import overload

import jax
import numpy as np
from jaxtyping import Float, UInt8

from unclip_jax.core.errors import UserError

AnyArray = np.ndarray | jax.Array

GAP = 2
"""Width in pixels of the white lines between the images of a grid."""


@overload
def to_float(images: UInt8[np.ndarray, "*b h w c"]) -> Float[np.ndarray, "*b h w c"]: ...
@overload
def to_float(images: UInt8[jax.Array, "*b h w c"]) -> Float[jax.Array, "*b h w c"]: ...
def to_float(images: UInt8[AnyArray, "*b h w c"]) -> Float[AnyArray, "*b h w c"]:
    """Convert, by equation (1), uint8 to float32 in [-1, 1]; numpy stays numpy, and jax arrays may be traced."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: Float[AnyArray, "*b h w c"]) -> UInt8[np.ndarray, "*b h w c"]:
    """Convert, by equation (2), floats, clipped to [-1, 1], to uint8. The inverse of `to_float` on its image.

    Raises:
        UserError: if a pixel is not finite.
    """
    pixels = np.asarray(images, np.float32)
    if not np.isfinite(pixels).all():
        raise UserError("the images hold values that are not finite; try float32 and a lower guidance scale")
    return np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(images: UInt8[np.ndarray, "n h w 3"], columns: int | None = None) -> UInt8[np.ndarray, "grid_h grid_w 3"]:
    """Lay n images out row by row with white lines between them; nearly square if `columns` is None."""
    num_images, height, width, _ = images.shape
    columns = min(columns or math.ceil(math.sqrt(num_images)), num_images)
    rows = math.ceil(num_images / columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet
