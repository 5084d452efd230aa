"""Many rows through programs of one size."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int, Shaped


def batches_of(count: int, size: int, only: int | None = None) -> Iterator[tuple[int, Int[np.ndarray, " b"]]]:
    """Yield (first, rows) of each batch of the rows 0 to count - 1, or of the one that holds row `only`.

    Every batch has `size` rows, the last one filled up with the last row, so that all run one program.
    """
    for first in range(0, count, size):
        if only is None or first <= only < first + size:
            yield first, np.minimum(np.arange(first, first + size), count - 1)


def joined(made: dict[int, Shaped[np.ndarray, "b ..."]], count: int, only: int | None = None) -> np.ndarray:
    """Join the rows of `batches_of` in order, by the first row of each batch, without those that filled the last one
    up; or take row `only` alone: its roundings are those of the whole request."""
    if only is not None:
        ((first, rows),) = made.items()
        return rows[only - first : only - first + 1]
    return np.concatenate([made[first] for first in sorted(made)])[:count]


def batched(
    call: Callable[[Int[np.ndarray, " b"]], np.ndarray], count: int, batch_size: int, only: int | None = None
) -> np.ndarray:
    """Apply `call` to the rows 0 to count - 1, `batch_size` rows at a time, or to the batch of row `only` alone."""
    batches = batches_of(count, min(batch_size, count), only)
    return joined({first: call(rows) for first, rows in batches}, count, only)
