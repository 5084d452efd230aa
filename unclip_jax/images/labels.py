"""Sheets of pictures with words: what a preview or a contact sheet says beside what it shows.

Letters are those of Pillow's own font, which has Latin, Greek and Cyrillic; others come out as boxes.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from unclip_jax.core.errors import UserError

GAP, MARGIN = 6, 3
"""Pixels between cells, and between a picture and its words."""
LEAST_WIDTH = 112
"""Pixels that a cell has for its words at least; smaller pictures are enlarged by whole pixels."""
LETTERS = 11
"""Size of the letters in px."""
LINES = 3
"""Lines of a caption that are shown."""
TITLE = 15
"""Size of the letters of a title in px."""
NAMES = (90, 90, 90)
"""Colour of what a row is called."""
MOST_CHARACTERS = 400
"""Characters of a caption that are looked at."""


def captioned(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], captions: Sequence[str], columns: int | None = None
) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Lay pictures out with a caption below each; nearly square if `columns` is None. A caption that is too long ends
    in three dots.

    Args:
        images: of one size.
    """
    if not images or len(images) != len(captions):
        raise UserError(f"{len(images)} pictures and {len(captions)} captions; give one for each")
    height, width, _ = images[0].shape
    scale = max(1, math.ceil(LEAST_WIDTH / width))
    height, width = scale * height, scale * width
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    line = LETTERS + MARGIN
    cell = height + MARGIN + LINES * line
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (cell + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * (width + GAP), index // columns * (cell + GAP)
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        for number, text in enumerate(wrapped(caption, width, LINES)):
            draw.text((left, top + height + MARGIN + number * line), text, fill="black", font=font())
    return np.array(sheet)


def captioned_rows(
    rows: Sequence[UInt8[np.ndarray, "b h w 3"]], names: Sequence[str], captions: Sequence[str]
) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Lay rows of pictures out one above the other, the name of each above it, and under the last one the captions of
    the columns."""
    _, height, width, _ = rows[0].shape
    scale = max(1, math.ceil(LEAST_WIDTH / width))
    height, width = scale * height, scale * width
    line = LETTERS + MARGIN
    row = line + height + MARGIN
    words = LINES * line if any(captions) else 0
    sheet = Image.new("RGB", (len(captions) * (width + GAP) - GAP, len(rows) * row + words), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (images, name) in enumerate(zip(rows, names, strict=True)):
        draw.text((0, number * row), name, fill=NAMES, font=font())
        for column, image in enumerate(images):
            large = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(large, (column * (width + GAP), number * row + line))
    for column, caption in enumerate(captions):
        for number, text in enumerate(wrapped(caption, width, LINES)):
            draw.text((column * (width + GAP), len(rows) * row + number * line), text, fill="black", font=font())
    return np.array(sheet)


def titled(sheets: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Put sheets below each other, each under its title."""
    band = TITLE + 2 * GAP
    height = sum(sheet.shape[0] + band for sheet in sheets.values()) + GAP
    whole = Image.new("RGB", (max(sheet.shape[1] for sheet in sheets.values()) + 2 * GAP, height), "white")
    draw, top = ImageDraw.Draw(whole), 0
    for title, sheet in sheets.items():
        draw.text((GAP, top + GAP), title, fill="black", font=ImageFont.load_default(TITLE))
        whole.paste(Image.fromarray(sheet), (GAP, top + band))
        top += band + sheet.shape[0]
    return np.array(whole)


def wrapped(text: str, width: int, most: int) -> list[str]:
    """Break a text into at most `most` lines of at most `width` px; what does not fit becomes three dots."""
    lines, left = [], " ".join("".join(c if c.isprintable() else " " for c in text[:MOST_CHARACTERS]).split())
    while left and len(lines) < most:
        end = _fitting(left, width)
        if end < len(left) and (space := left.rfind(" ", 0, end + 1)) > 0:
            end = space
        line, left = left[:end].rstrip(), left[end:].lstrip()
        lines.append(line)
    if left:
        kept = _fitting(lines[-1], width - math.ceil(font().getlength("...")))
        lines[-1] = f"{lines[-1][:kept].rstrip()}..."
    return lines


@functools.cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of the words."""
    return ImageFont.load_default(LETTERS)


def _fitting(text: str, width: int) -> int:
    """Return how many of the first characters fit, but 1 at least."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font().getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low
