"""How well embeddings find their partners among many, on the host.

(1) rank_i = |{j: s_ij > s_ii + tolerance}|        s_ij = q_i . k_j, of unit vectors
(2) recall at n = share of i with rank_i < n       by chance n / N

What is as near as the partner, such as another picture with the very same caption, does not count against it.
"""

import math

import numpy as np
from jaxtyping import Float, Int

TOLERANCE = 1e-5
"""Of equation (1): some hundred times what float32 rounds a cosine by."""


def ranks(queries: Float[np.ndarray, "n d"], keys: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
    """Compute equation (1)."""
    likeness = np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T
    return (likeness > np.diag(likeness)[:, None] + TOLERANCE).sum(axis=1)


def recall(ranks: Int[np.ndarray, " n"], count: int) -> float:
    """Compute equation (2)."""
    return float(np.mean(ranks < count))


def apart(training: float, held_out: float, count: int) -> bool:
    """Return whether a recall on `count` held-out examples is less than half of that on as many training ones, and by
    more than three standard deviations of their difference."""
    mean = (training + held_out) / 2
    return held_out < training / 2 and training - held_out > 3 * math.sqrt(2 * mean * (1 - mean) / count)
