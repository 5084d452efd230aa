"""A matrix of cosines as a picture: its rows named in words on the left, its columns in pictures above."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from unclip_jax.images.labels import LETTERS, MARGIN, font, wrapped

CELL = 32
"""Side in px of one entry, and of the picture above it."""
WORDS = 240
"""Width in px of the captions on the left."""
NUMBER = 22
"""Of which the number of a row takes so many."""
BAR = 16
"""Width in px of the bar."""
_COLD, _HOT = np.array([12, 18, 60]), np.array([255, 232, 130])
_LINE = LETTERS + MARGIN


def heat_map(
    values: Float[np.ndarray, "n n"],
    captions: Sequence[str],
    pictures: UInt8[np.ndarray, "n h w 3"] | None,
    *,
    rows: str,
    columns: str,
) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Draw a matrix with its axes.

    Args:
        captions: of the rows.
        pictures: of the columns; None for numbers alone.
        rows, columns: what they are.
    """
    count = len(values)
    low, high = float(values.min()), float(values.max())
    above = MARGIN + 2 * _LINE + (CELL + MARGIN if pictures is not None else 0)
    left, side = WORDS + MARGIN, count * CELL
    numbers = MARGIN + int(np.ceil(font().getlength("-0.00"))) + MARGIN
    sheet = Image.new("RGB", (left + side + CELL + BAR + numbers, above + side + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, above - _LINE), f"rows: {rows}", fill="black", font=font())
    draw.text((left, MARGIN), f"columns: {columns}", fill="black", font=font())
    sheet.paste(Image.fromarray(_cells(values, low, high)), (left, above))
    for index in range(count):
        x, y = left + index * CELL, above + index * CELL
        draw.text((x + CELL / 2, MARGIN + 1.5 * _LINE), str(index + 1), fill="black", font=font(), anchor="mm")
        if pictures is not None:
            small = Image.fromarray(pictures[index]).resize((CELL - 2, CELL - 2), Image.Resampling.BOX)
            sheet.paste(small, (x + 1, above - CELL - 1))
        draw.text((left - MARGIN, y + CELL / 2), str(index + 1), fill="black", font=font(), anchor="rm")
        lines = wrapped(captions[index], WORDS - NUMBER - MARGIN, CELL // _LINE)
        for number, text in enumerate(lines):
            top = y + (CELL - len(lines) * _LINE) / 2 + number * _LINE
            draw.text((MARGIN, top), text, fill="black", font=font())
    ramp = _cells(np.linspace(high, low, side)[:, None], low, high, 1)
    sheet.paste(Image.fromarray(ramp.repeat(BAR, axis=1)), (left + side + CELL, above))
    x = left + side + CELL + BAR + MARGIN
    draw.text((x, above), f"{high:.2f}", fill="black", font=font())
    draw.text((x, above + side), f"{low:.2f}", fill="black", font=font(), anchor="ls")
    return np.array(sheet)


def _cells(values: Float[np.ndarray, "n m"], low: float, high: float, cell: int = CELL) -> UInt8[np.ndarray, "h w 3"]:
    """Colour each entry: from dark blue, the least, to yellow, the most."""
    share = ((values - low) / max(high - low, 1e-6))[..., None]
    return (_COLD + share * (_HOT - _COLD)).astype(np.uint8).repeat(cell, axis=0).repeat(cell, axis=1)
