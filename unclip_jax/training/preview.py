"""Pictures that a run leaves behind while it trains."""

import numpy as np
from jaxtyping import Float, UInt8

CELL = 16
"""Side in pixels of one entry of a heat map."""
_COLD, _HOT = np.array([12, 18, 60]), np.array([255, 232, 130])


def heat_map(values: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "h w 3"]:
    """A matrix of cosines as squares from dark blue (-1, or the smallest) to yellow (the largest)."""
    low, high = float(values.min()), float(values.max())
    share = ((values - low) / max(high - low, 1e-6))[..., None]
    cells = (_COLD + share * (_HOT - _COLD)).astype(np.uint8)
    return cells.repeat(CELL, axis=0).repeat(CELL, axis=1)
