"""Distances between images.

(1) PSNR = 10 log10(255^2 / mean squared error)     of uint8 images, in dB
"""

import numpy as np
from jaxtyping import Float, UInt8


def psnr(images: UInt8[np.ndarray, "n h w c"], others: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
    """Compute equation (1), image by image; infinite where two are the same."""
    error = np.mean(np.square(images.astype(np.float64) - others), axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)
