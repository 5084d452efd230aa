"""Noise schedules: the [T] table alpha_bar that every other coefficient is derived from, in float64 numpy.

With alpha_bar_prev the entry one row earlier (1 before the first row), a row of the table has

(1)  beta = 1 - alpha_bar / alpha_bar_prev
(2)  posterior_variance = beta (1 - alpha_bar_prev) / (1 - alpha_bar)
(3)  posterior mean = posterior_x_0 x_0 + posterior_x_t x_t, with
     posterior_x_0 = sqrt(alpha_bar_prev) beta / (1 - alpha_bar)
     posterior_x_t = sqrt(1 - beta) (1 - alpha_bar_prev) / (1 - alpha_bar)

(DDPM, arXiv 2006.11239, eq. 6-7.) A respaced schedule keeps some rows of alpha_bar. Because (1) to (3) are
functions of alpha_bar alone, they hold there unchanged, for strides of any size (improved DDPM,
arXiv 2102.09672, eq. 19). Of T rows, n steps keep

(4)  linspace: round(linspace(0, T - 1, n)), both ends; a single step keeps the noisiest row
(5)  leading:  0, k, 2 k, ... with k = T // n, from the data upwards, so that the noisiest rows are left out
(6)  trailing: round(T), round(T - T / n), ..., each less 1, from the noise downwards (Lin et al., arXiv 2305.08891)
(7)  karras:   sigma^(1/7) in equal steps from end to end, sigma = sqrt((1 - alpha_bar) / alpha_bar), so that alpha_bar
     lies between rows; the timestep is where log sigma does, rounded (Karras et al., arXiv 2206.00364, eq. 5)

A schedule may end in noise alone, alpha_bar = 0, once the signal of every row is moved and scaled (2305.08891, alg. 1):

(8)  s' = (s - s_T) s_1 / (s_1 - s_T),  s = sqrt(alpha_bar)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import get_args

import jax
import numpy as np
from jaxtyping import Float64, Int64

from unclip_jax.diffusion.process import Spacing, check_steps

MAX_BETA = 0.999
KARRAS_RHO = 7


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """A noise schedule, lowest noise first.

    It is a pytree without leaves, compared and hashed by content: jit takes it as an argument or closes over
    it alike, and the tables stay float64 until a coefficient has been computed from them.

    Attributes:
        alpha_bar: cumulative signal power, strictly decreasing, in (0, 1); the last row may be 0.
        timesteps: the training step that each row stands for; this is what a network is conditioned on.
    """

    alpha_bar: Float64[np.ndarray, " t"]
    timesteps: Int64[np.ndarray, " t"]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            table = getattr(self, field.name).copy()
            table.flags.writeable = False
            object.__setattr__(self, field.name, table)
        previous = np.append(1.0, self.alpha_bar[:-1])
        if not (len(self.alpha_bar) and (self.alpha_bar >= 0).all() and (self.alpha_bar < previous).all()):
            raise ValueError("alpha_bar must hold at least one row, be strictly decreasing and lie in [0, 1)")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @functools.cached_property
    def _content(self) -> tuple[bytes, bytes]:
        return self.alpha_bar.tobytes(), self.timesteps.tobytes()

    @classmethod
    def cosine(cls, num_steps: int) -> "Schedule":
        """alpha_bar(u) = cos^2((u + 0.008) / 1.008 pi / 2), beta at most 0.999 (improved DDPM, eq. 17)."""
        return cls._from_function(lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2, num_steps)

    @classmethod
    def linear(cls, num_steps: int) -> "Schedule":
        """beta from 1e-4 to 0.02, times 1000 / T to end at the same noise for any T; at most 0.999."""
        check_steps(num_steps)
        return cls._from_beta(1000 / num_steps * np.linspace(1e-4, 0.02, num_steps))

    @classmethod
    def sigmoid(cls, num_steps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> "Schedule":
        """alpha_bar(u) = (s(end) - s(start + u (end - start))) / (s(end) - s(start)), with s(x) =
        sigmoid(x / tau) and beta at most 0.999 (Jabri et al., arXiv 2212.11972)."""

        def s(x):
            return 1 / (1 + np.exp(-x / tau))

        def alpha_bar(u):
            return (s(end) - s(start + u * (end - start))) / (s(end) - s(start))

        return cls._from_function(alpha_bar, num_steps)

    @classmethod
    def _from_function(cls, alpha_bar: Callable[[np.ndarray], np.ndarray], num_steps: int) -> "Schedule":
        check_steps(num_steps)
        values = alpha_bar(np.arange(num_steps + 1) / num_steps)
        return cls._from_beta(1 - values[1:] / values[:-1])

    @classmethod
    def _from_beta(cls, beta: np.ndarray) -> "Schedule":
        return cls(alpha_bar=np.cumprod(1 - np.minimum(beta, MAX_BETA)), timesteps=np.arange(len(beta)))

    def zero_terminal_snr(self) -> "Schedule":
        """Eq. 8: the first row as it is, the last without signal.

        Raises:
            ValueError: there is a single row.
        """
        if self.num_steps == 1:
            raise ValueError("zero terminal SNR needs a schedule of at least 2 steps; got 1")
        signal = np.sqrt(self.alpha_bar)
        scale = signal[0] / (signal[0] - signal[-1])
        return Schedule(alpha_bar=(scale * (signal - signal[-1])) ** 2, timesteps=self.timesteps)

    def respace(self, num_steps: int, spacing: Spacing = "linspace") -> "Schedule":
        """`num_steps` rows by eq. 4 to 7.

        Raises:
            ValueError: unless 1 <= num_steps <= T; for another spacing; for "karras" where alpha_bar reaches 0.
        """
        check_steps(num_steps)
        if num_steps > self.num_steps:
            raise ValueError(f"steps must be at most the schedule's {self.num_steps}; got {num_steps}")
        match spacing:
            case "linspace":
                first = 0 if num_steps > 1 else self.num_steps - 1
                rows = np.round(np.linspace(first, self.num_steps - 1, num_steps))
            case "leading":
                rows = np.arange(num_steps) * (self.num_steps // num_steps)
            case "trailing":
                # By arange, as in diffusers, so that halves round as there; it may hold one too many, by rounding.
                rows = np.round(np.arange(self.num_steps, 0, -self.num_steps / num_steps)[:num_steps])[::-1] - 1
            case "karras":
                return self._karras(num_steps)
            case _:
                raise ValueError(f"spacing must be one of {', '.join(get_args(Spacing))}; got {spacing!r}")
        rows = rows.astype(np.int64)
        return Schedule(alpha_bar=self.alpha_bar[rows], timesteps=self.timesteps[rows])

    def _karras(self, num_steps: int) -> "Schedule":
        if self.alpha_bar[-1] == 0:
            raise ValueError("karras spacing has no end where alpha_bar is 0; choose trailing")
        sigma = np.sqrt(1 / self.snr)
        # From the noise downwards, so that a single step keeps the noisiest row.
        largest, smallest = sigma[[-1, 0]] ** (1 / KARRAS_RHO)
        chosen = np.linspace(largest, smallest, num_steps)[::-1] ** KARRAS_RHO
        timesteps = np.round(np.interp(np.log(chosen), np.log(sigma), self.timesteps))
        return Schedule(alpha_bar=1 / (1 + chosen**2), timesteps=timesteps.astype(np.int64))

    @property
    def num_steps(self) -> int:
        return len(self.alpha_bar)

    @functools.cached_property
    def alpha_bar_prev(self) -> Float64[np.ndarray, " t"]:
        return np.append(1.0, self.alpha_bar[:-1])

    @functools.cached_property
    def beta(self) -> Float64[np.ndarray, " t"]:
        return 1 - self.alpha_bar / self.alpha_bar_prev

    @functools.cached_property
    def snr(self) -> Float64[np.ndarray, " t"]:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar)."""
        return self.alpha_bar / (1 - self.alpha_bar)

    @functools.cached_property
    def posterior_variance(self) -> Float64[np.ndarray, " t"]:
        """Eq. 2; exactly 0 in the first row, which leads to the data itself."""
        return self.beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @functools.cached_property
    def posterior_log_variance(self) -> Float64[np.ndarray, " t"]:
        """log of eq. 2; the first row, whose variance is 0, repeats the second (a lone row has log beta)."""
        floor = self.posterior_variance[1] if self.num_steps > 1 else self.beta[0]
        return np.log(np.append(floor, self.posterior_variance[1:]))

    @functools.cached_property
    def posterior_x_0(self) -> Float64[np.ndarray, " t"]:
        """Coefficient of x_0 in eq. 3; exactly 1 in the first row."""
        return np.sqrt(self.alpha_bar_prev) * self.beta / (1 - self.alpha_bar)

    @functools.cached_property
    def posterior_x_t(self) -> Float64[np.ndarray, " t"]:
        """Coefficient of x_t in eq. 3; exactly 0 in the first row."""
        return np.sqrt(1 - self.beta) * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
