"""Where to draw: masks and boxes of a command line."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.editing.outpainting import Margins
from unclip_jax.images.files import image_files
from unclip_jax.images.transforms import read_image, square_crop

MAX_MARGIN = 4096


def mask_of(image: Path, masks: Path) -> Path:
    """The mask for an image: `masks` itself, or the image in that folder whose name is the image's up to the suffix."""
    if not masks.is_dir():
        return masks
    found = [file for file in image_files([masks]) if file.stem == image.stem]
    if not found:
        raise UserError(f"{masks} has no mask for {image}; put one there that is named {image.stem}.png")
    return found[0]


def read_mask(image: Path, masks: Path | None, box: str | None) -> Bool[np.ndarray, "side side"]:
    """Where to draw, in the central square of an image; UserError where that is nowhere."""
    picture = read_image(image)
    if masks is not None:
        file = mask_of(image, masks)
        mask = read_image(file)
        if mask.size != picture.size:
            sizes = [f"{each.width} x {each.height} px" for each in (mask, picture)]
            raise UserError(f"{file} is {sizes[0]} and {image} {sizes[1]}; give a mask of that size")
        mask = mask.convert("L")
    else:
        left, top, width, height = read_box(box or "", picture.size)
        mask = Image.new("L", picture.size)
        mask.paste(255, (left, top, left + width, top + height))
    marked = np.asarray(square_crop(mask)) >= 128
    if not marked.any():
        mark = "white" if masks is not None else "the box"
        raise UserError(f"nothing of the central square of {image} is to be drawn; mark some of it ({mark})")
    return marked


def read_box(text: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """left,top,width,height in pixels of an image of `size`; with a decimal point, text says fractions of it."""
    try:
        left, top, width, height = (float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"cannot read --box {text}; write four numbers, left,top,width,height") from None
    edges = np.array([left, left + width, top, top + height]) * (np.repeat(size, 2) if "." in text else 1)
    if not (np.isfinite(edges).all() and width > 0 and height > 0):
        raise UserError(f"--box {text} has no inside; write left,top,width,height, the last two above 0")
    x, x_end, y, y_end = (int(round(edge)) for edge in edges)
    if min(x, y) < 0 or x_end > size[0] or y_end > size[1]:
        raise UserError(f"--box {text} reaches beyond the image, which is {size[0]} x {size[1]} px")
    return x, y, max(x_end - x, 1), max(y_end - y, 1)


def read_margins(text: str) -> Margins:
    """left,top,right,bottom in pixels."""
    try:
        left, top, right, bottom = (int(word) for word in text.split(","))
        if max(left, top, right, bottom) > MAX_MARGIN:
            raise UserError(f"--outpaint {text} goes far beyond the image; give at most {MAX_MARGIN} px on each side")
        return Margins(left=left, top=top, right=right, bottom=bottom)
    except ValueError:
        ask = "write left,top,right,bottom in pixels, none below 0 and one above"
        raise UserError(f"cannot read --outpaint {text}; {ask}") from None
