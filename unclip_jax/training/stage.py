"""What training asks of a stage (CLIP, prior, decoder, upsampler) and of the preview that watches it."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt8

Batch = dict[str, jax.Array]
StageMetrics = dict[str, tuple[Float[Array, " b"], Float[Array, " b"]]]


@runtime_checkable
class Stage(Protocol):
    """A network, how its parameters start and what it minimises; immutable, holds no arrays."""

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Fresh parameters: nested dicts of float32 arrays."""
        ...

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], StageMetrics]:
        """The loss of every example, and metrics as (values, weights) of every example.

        `frozen` holds parameters and statistics that are not trained ({} if none): an argument, so that it
        is never compiled in as a constant. `keys` are the examples' own, the only randomness to use. The
        step minimises the mean loss and reports a metric as sum(value * weight) / sum(weight) over the
        global batch.
        """
        ...


Preview = Callable[[PyTree, PyTree, int], UInt8[np.ndarray, "h w 3"] | None]
"""(EMA parameters, frozen, step) -> an image to save under samples/, or None."""
