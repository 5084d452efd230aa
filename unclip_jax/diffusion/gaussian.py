"""The Gaussian diffusion process: forward noising, the posterior, and what a network may predict.

(1)  x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps,  eps ~ N(0, I)
(2)  v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
(3)  q(x_{t-1} | x_t, x_0) = N(posterior_x_0 x_0 + posterior_x_t x_t, posterior_variance)
(4)  log variance = f log beta + (1 - f) log posterior_variance,  f = (channel + 1) / 2

Eq. 1 and 3: DDPM, arXiv 2006.11239. Eq. 2: Salimans and Ho, arXiv 2202.00512. Eq. 4, the learned range:
improved DDPM, arXiv 2102.09672, eq. 15. `t` is always a row of the process's schedule, int [b], and x is
[b ...] of any rank.
"""

import dataclasses
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from unclip_jax.diffusion.schedule import Schedule, Spacing

Prediction = Literal["eps", "x0", "v"]
Variance = Literal["small", "large", "learned_range"]


class PosteriorGaussian(NamedTuple):
    """Eq. 3. Variances have size 1 on every axis but the first; the log of a zero variance is kept finite."""

    mean: Float[Array, " b *dims"]
    variance: Float[Array, " b *ones"]
    log_variance: Float[Array, " b *ones"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """A schedule, and what a network trained on it outputs. A pytree without leaves, like `Schedule`.

    Attributes:
        prediction: the quantity predicted; not eps where the schedule ends in alpha_bar = 0, since x_t says
            nothing of x_0 there and eps is x_t itself.
        variance: of the reverse steps: eq. 3's ("small"), beta ("large"), or eq. 4 by extra output channels.
    """

    schedule: Schedule
    prediction: Prediction = "eps"
    variance: Variance = "small"

    def __post_init__(self):
        if self.prediction == "eps" and self.schedule.alpha_bar[-1] == 0:
            raise ValueError("eps does not give x_0 where alpha_bar is 0; predict v or x0 on this schedule")

    def respace(self, num_steps: int, spacing: Spacing = "linspace") -> "Process":
        """The same process on `num_steps` rows of its schedule (ValueError as `Schedule.respace`)."""
        return dataclasses.replace(self, schedule=self.schedule.respace(num_steps, spacing))

    def q_sample(
        self, x_0: Float[Array, " b *dims"], t: Int[Array, " b"], noise: Float[Array, " b *dims"]
    ) -> Float[Array, " b *dims"]:
        """x_t of eq. 1."""
        signal, sigma = self._scales(t, x_0.ndim)
        return signal * x_0 + sigma * noise

    def posterior(
        self, x_0: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Int[Array, " b"]
    ) -> PosteriorGaussian:
        """Eq. 3."""
        schedule, ndim = self.schedule, x_t.ndim
        return PosteriorGaussian(
            mean=take(schedule.posterior_x_0, t, ndim) * x_0 + take(schedule.posterior_x_t, t, ndim) * x_t,
            variance=take(schedule.posterior_variance, t, ndim),
            log_variance=take(schedule.posterior_log_variance, t, ndim),
        )

    def to_x0(
        self, prediction: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Int[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        """The x_0 that the prediction implies at x_t."""
        signal, sigma = self._scales(t, x_t.ndim)
        match self.prediction:
            case "eps":
                return (x_t - sigma * prediction) / signal
            case "x0":
                return prediction
            case "v":
                return signal * x_t - sigma * prediction

    def to_eps(
        self, prediction: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Int[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        """The eps that the prediction implies at x_t."""
        signal, sigma = self._scales(t, x_t.ndim)
        match self.prediction:
            case "eps":
                return prediction
            case "x0":
                return (x_t - signal * prediction) / sigma
            case "v":
                return signal * prediction + sigma * x_t

    def to_v(
        self, prediction: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Int[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        """The v that the prediction implies at x_t."""
        signal, sigma = self._scales(t, x_t.ndim)
        match self.prediction:
            case "eps":
                return (prediction - sigma * x_t) / signal
            case "x0":
                return (signal * x_t - prediction) / sigma
            case "v":
                return prediction

    def target(
        self, x_0: Float[Array, " b *dims"], noise: Float[Array, " b *dims"], t: Int[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        """What a perfect network would output for this x_0 and noise."""
        match self.prediction:
            case "eps":
                return noise
            case "x0":
                return x_0
            case "v":
                signal, sigma = self._scales(t, x_0.ndim)
                return signal * noise - sigma * x_0

    def split(
        self, output: Float[Array, " b *channels"]
    ) -> tuple[Float[Array, " b *half"], Float[Array, " b *half"] | None]:
        """A network's output as (prediction, variance channels): halves of the last axis of a learned range.

        Raises:
            ValueError: the last axis is odd.
        """
        if self.variance != "learned_range":
            return output, None
        if output.shape[-1] % 2:
            raise ValueError(f"a learned range needs an even number of channels; got {output.shape[-1]}")
        prediction, variance_channels = jnp.split(output, 2, axis=-1)
        return prediction, variance_channels

    def log_variance(
        self, variance_channels: Float[Array, " b *dims"] | None, t: Int[Array, " b"]
    ) -> Float[Array, " b *ones"]:
        """Log variance of the reverse step from row t: [b ...] by eq. 4, or [b] where the variance is fixed.

        Raises:
            ValueError: channels are missing for a learned range, or given for a fixed variance.
        """
        if (variance_channels is None) == (self.variance == "learned_range"):
            given = "no" if variance_channels is None else "some"
            raise ValueError(f"a process with variance {self.variance!r} got {given} variance channels")
        low, high = self.log_variance_range(self.variance)
        ndim = 1 if variance_channels is None else variance_channels.ndim
        return interpolate_log_variance(variance_channels, take(low, t, ndim), take(high, t, ndim))

    def log_variance_range(self, variance: Variance) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
        """The two ends between which eq. 4 interpolates; they coincide for a fixed variance."""
        small, large = self.schedule.posterior_log_variance, np.log(self.schedule.beta)
        return {"small": (small, small), "large": (large, large), "learned_range": (small, large)}[variance]

    def _scales(self, t: Array, ndim: int) -> tuple[Array, Array]:
        alpha_bar = self.schedule.alpha_bar
        return take(np.sqrt(alpha_bar), t, ndim), take(np.sqrt(1 - alpha_bar), t, ndim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """A `Process` as primitive fields, for configurations and files."""

    schedule: Literal["cosine", "linear", "sigmoid"] = "cosine"
    num_steps: int = 1000
    prediction: Prediction = "eps"
    variance: Variance = "small"
    zero_terminal_snr: bool = False
    """Ends the schedule in noise alone, as sampling begins (`Schedule.zero_terminal_snr`); not with eps."""

    def __post_init__(self):
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError("zero_terminal_snr leaves nothing that eps could tell x_0 from; set prediction to v or x0")

    def build(self) -> Process:
        """Raises: ValueError for a name that is not one of the choices, or fewer than 1 step."""
        for name, choices in (("prediction", get_args(Prediction)), ("variance", get_args(Variance))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        makers = {"cosine": Schedule.cosine, "linear": Schedule.linear, "sigmoid": Schedule.sigmoid}
        if self.schedule not in makers:
            raise ValueError(f"schedule must be one of {', '.join(makers)}; got {self.schedule!r}")
        schedule = makers[self.schedule](self.num_steps)
        if self.zero_terminal_snr:
            schedule = schedule.zero_terminal_snr()
        return Process(schedule=schedule, prediction=self.prediction, variance=self.variance)


def take(table: Float64[np.ndarray, " t"], t: Int[Array, " b"], ndim: int) -> Float[Array, " b *ones"]:
    """Rows t of a float64 table as float32, with unit axes appended up to rank `ndim`."""
    return jnp.asarray(table, jnp.float32)[t].reshape(t.shape + (1,) * (ndim - 1))


def interpolate_log_variance(variance_channels: Array | None, low: Array, high: Array) -> Array:
    """Eq. 4, with `low` at channel -1 and `high` at +1; `low` alone without channels."""
    if variance_channels is None:
        return low
    fraction = (variance_channels.astype(jnp.float32) + 1) / 2
    return fraction * high + (1 - fraction) * low
