"""Heun's method of second order (Karras et al., arXiv 2206.00364, algorithm 1).

Along any path of noise levels (signal, sigma) the probability flow is dx = x_0(x) d signal + eps(x) d sigma. On the
straight line from a row (a, s) to the one below it (a', s'), with d(x, x_0, eps) = (a' - a) x_0 + (s' - s) eps,

(1)  x' = x_t + d(x_0, eps),  which is `DDIM` with eta = 0
(2)  x_prev = x_t + (d(x_0, eps) + d(x_0', eps')) / 2,  x_0' and eps' = (x' - a' x_0') / s' of the network at x'

With a = a' = 1 this is EDM's sampler, with a = 1 - s a flow's; only the ends of the line are evaluated, and the line of
a variance-preserving process has the same ends as its arc. From x_t, x' and x_0' eq. 2 is computed as

(3)  x_prev = x_t / 2 + (1 - s / (2 s')) x' + (a' s / s' - a) / 2 x_0'

The last step, to s' = 0, is eq. 1: 2 steps - 1 evaluations in all. A learned variance is ignored.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float64, Int64

from unclip_jax.diffusion.process import Process, check_steps
from unclip_jax.diffusion.samplers.ddim import DDIM
from unclip_jax.diffusion.samplers.sampler import Denoised


class HeunCarry(NamedTuple):
    """x_t or x' of eq. 1, and the other one: `last_x` is where the network was evaluated before."""

    x: Float[Array, " b *dims"]
    last_x: Float[Array, " b *dims"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun:
    """Eq. 1 and 2 in turn.

    Attributes:
        steps: intervals, at most the process's number of steps; the network is evaluated 2 steps - 1 times.
    """

    steps: int

    def __post_init__(self):
        check_steps(self.steps)

    @property
    def is_stochastic(self) -> bool:
        return False

    @property
    def evaluations(self) -> int:
        return 2 * self.steps - 1

    @property
    def evaluated(self) -> Int64[np.ndarray, " n"]:
        # Eq. 1 leaves a row and eq. 2 arrives at one; nothing arrives at the noisiest.
        return np.repeat(np.arange(self.steps, dtype=np.int64), 2)[:-1]

    def coefficients(self, process: Process) -> dict[str, Float64[np.ndarray, " n"]]:
        first = DDIM(steps=self.steps).coefficients(process)
        signal, sigma = process.signal, process.sigma
        ratio = sigma[1:] / sigma[:-1]
        return {
            "x_0": _alternate(first["x_0"], (signal[:-1] * ratio - signal[1:]) / 2),
            "x_t": _alternate(first["x_t"], 1 - ratio / 2),
            "last_x": _alternate(np.zeros(self.steps), np.full(self.steps - 1, 0.5)),
        }

    def start(self, x_T: Float[Array, " b *dims"]) -> HeunCarry:
        # Eq. 1 does not use last_x.
        return HeunCarry(x=x_T, last_x=x_T)

    def update(
        self, carry: HeunCarry, prediction: Denoised, row: dict[str, Float[Array, ""]], noise: Float[Array, " b *dims"]
    ) -> HeunCarry:
        x = row["x_0"] * prediction.x_0 + row["x_t"] * carry.x + row["last_x"] * carry.last_x
        return HeunCarry(x=x, last_x=carry.x)


def _alternate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first[0], second[0], first[1], ..., first[-1]."""
    column = np.empty(len(first) + len(second))
    column[0::2], column[1::2] = first, second
    return column
