"""Image files of any kind to square uint8 RGB.

One path for training and for a person's own picture: read -> upright (EXIF) -> RGB over white -> centre
square -> antialiased bicubic in one step from the original. Pixels are taken as sRGB; embedded profiles are
ignored.
"""

import io
import os
import stat
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from unclip_jax.core.errors import UserError

MAX_IMAGE_PIXELS = 89_478_485
"""Largest image read, in pixels: about 9459 x 9459, 256 MiB as RGB. Where Pillow begins to warn."""

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class BrokenImageError(UserError):
    """An image file that cannot be read in full: not an image, truncated, too large or of an unknown kind."""


def read_image(file: str | Path | bytes, *, name: str | None = None) -> Image.Image:
    """Read an image file (a path or its bytes) in full: upright, mode RGB; the first frame of an animation.

    Raises BrokenImageError, naming `name` (the path where none is given).
    """
    name = name or ("image" if isinstance(file, bytes) else os.fspath(file))
    try:
        # A pipe would keep its reader waiting.
        if not isinstance(file, bytes) and not stat.S_ISREG(os.stat(file).st_mode):
            raise BrokenImageError("not a file; give an image")
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenImageError(
            f"{name}: larger than the limit of {MAX_IMAGE_PIXELS:,} pixels; make it smaller"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise BrokenImageError(f"{name}: not an image that Pillow can read; convert it to PNG or JPEG") from error
    except BrokenImageError as error:
        raise BrokenImageError(f"{name}: {error}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenImageError(f"{name}: cannot be read ({reason}); replace the file") from error


def image_size(file: str | Path | bytes) -> tuple[int, int] | None:
    """Return width and height in px as stored, from no more than the header; None for what Pillow cannot open."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.size
    except Exception:  # as above
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to upright RGB of 8 bits.

    Transparency is composited over white. 16-bit greyscale is scaled to 8 bits, where Pillow would clip it;
    floating point is taken as [0, 1]. Raises BrokenImageError for integers past 16 bits and floats outside [0, 1].
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in SIXTEEN_BIT_MODES:
        image = _scale_to_bytes(image, np.float64(65535), "16-bit integers")
    elif image.mode == "F":
        image = _scale_to_bytes(image, np.float64(1), "numbers in [0, 1]")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _scale_to_bytes(image: Image.Image, limit: np.float64, kind: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not (values.min() >= 0 and values.max() <= limit):
        raise BrokenImageError(f"an image of mode {image.mode} must hold {kind}; convert it to 8-bit PNG")
    return Image.fromarray(np.round(values * (255 / limit)).astype(np.uint8))


def square_crop(image: Image.Image) -> Image.Image:
    """Crop the largest centred square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image if image.width == image.height else image.crop((left, top, left + side, top + side))


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resize a square image to `size` x `size` px by antialiased bicubic, in one step whatever the ratio."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def fit(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Fit the centred square of an RGB image to `size` x `size` px, as an array."""
    return np.array(resize(square_crop(image), size))
