"""What the loops and an algorithm know of each other.

An algorithm is a table of float64 coefficients, one row per network evaluation, and an update of what it carries. With
one evaluation a step and nothing carried but x_t itself, the update is

(1)  x_prev = x_0_coefficient x_0 + x_t_coefficient x_t + noise_coefficient noise
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int64, PyTree

from unclip_jax.diffusion.process import Process


class Denoised(NamedTuple):
    """What a network found at a point: x_0, after thresholding, and its variance channels if it has any."""

    x_0: Float[Array, " b *dims"]
    variance_channels: Float[Array, " b *dims"] | None


@runtime_checkable
class Carry(Protocol):
    """What a sampler keeps from one evaluation to the next: a NamedTuple of arrays like x, of which x is one."""

    @property
    def x(self) -> Float[Array, " b *dims"]:
        """Where the network is evaluated next; the sample at the end."""
        ...


class Point(NamedTuple):
    """The carry of a sampler that looks at nothing but the current x."""

    x: Float[Array, " b *dims"]


@runtime_checkable
class Sampler(Protocol):
    """An algorithm: a hashable description, a table of coefficients and the update that uses one row of it."""

    @property
    def steps(self) -> int:
        """Intervals between noise levels, and rows of the process."""
        ...

    @property
    def evaluated(self) -> Int64[np.ndarray, " n"]:
        """The row of the process at which each network evaluation is made, last evaluation first."""
        ...

    @property
    def evaluations(self) -> int:
        """Network evaluations."""
        ...

    @property
    def is_stochastic(self) -> bool:
        """Whether updates use noise; if not, they are given zeros."""
        ...

    def coefficients(self, process: Process) -> dict[str, Float64[np.ndarray, " n"]]:
        """Return the columns of the table, last evaluation first, so lowest noise first.

        Args:
            process: respaced to `steps` rows.

        Raises:
            ValueError: the algorithm is not for such a process.
        """
        ...

    def start(self, x_T: Float[Array, " b *dims"]) -> PyTree:
        """Return the `Carry` of the first evaluation."""
        ...

    def update(
        self, carry: PyTree, prediction: Denoised, row: dict[str, Float[Array, ""]], noise: Float[Array, " b *dims"]
    ) -> PyTree:
        """Return the next carry, from one row of the table as float32 scalars."""
        ...


def carries_only_x(sampler: Sampler) -> bool:
    """Return whether the sampler could go on from any x, since it keeps nothing else from step to step."""
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    return isinstance(jax.eval_shape(sampler.start, one), Point)


class OneEvaluation:
    """The part of `Sampler` that algorithms of one evaluation a step share; eq. 1 is their update by default."""

    steps: int

    @property
    def evaluated(self) -> Int64[np.ndarray, " n"]:
        return np.arange(self.steps, dtype=np.int64)

    @property
    def evaluations(self) -> int:
        return self.steps

    def start(self, x_T: Float[Array, " b *dims"]) -> PyTree:
        return Point(x_T)

    def update(
        self, carry: PyTree, prediction: Denoised, row: dict[str, Float[Array, ""]], noise: Float[Array, " b *dims"]
    ) -> PyTree:
        return Point(row["x_0"] * prediction.x_0 + row["x_t"] * carry.x + row["noise"] * noise)
