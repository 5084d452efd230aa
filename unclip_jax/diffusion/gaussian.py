"""Discrete variance-preserving diffusion: forward noising, the posterior, and what a network may predict.

(1)  x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps,  eps ~ N(0, I)
(2)  v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
(3)  q(x_{t-1} | x_t, x_0) = N(posterior_x_0 x_0 + posterior_x_t x_t, posterior_variance)
(4)  log variance = f log beta + (1 - f) log posterior_variance,  f = (channel + 1) / 2
(5)  w_t = h c;  c = 1 for eps, SNR for x0, SNR / (SNR + 1) for v: h then weighs the error of eps in all three
     h = min(SNR, 5) / SNR   min-SNR                             (Hang et al., arXiv 2303.09556)
     h = 1 / (1 + SNR)       P2 with k = gamma = 1               (Choi et al., arXiv 2204.00227)

Eq. 1 and 3: DDPM, arXiv 2006.11239. Eq. 2: Salimans and Ho, arXiv 2202.00512. Eq. 4, the learned range:
improved DDPM, arXiv 2102.09672, eq. 15. `t` is always a row of the process's schedule, int [b], and x is
[b ...] of any rank; the time that a network is conditioned on is the training step.
"""

import dataclasses
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Key

from unclip_jax.diffusion.process import Process, Spacing, Weighting, check_steps, take
from unclip_jax.diffusion.schedule import Schedule

Prediction = Literal["eps", "x0", "v"]
Variance = Literal["small", "large", "learned_range"]
MIN_SNR_GAMMA = 5.0


class PosteriorGaussian(NamedTuple):
    """Eq. 3. Variances have size 1 on every axis but the first; the log of a zero variance is kept finite."""

    mean: Float[Array, " b *dims"]
    variance: Float[Array, " b *ones"]
    log_variance: Float[Array, " b *ones"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class VariancePreserving(Process):
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

    def respace(self, num_steps: int, spacing: Spacing = "linspace") -> "VariancePreserving":
        """Return the process on `num_steps` rows of its schedule (ValueError as `Schedule.respace`)."""
        return dataclasses.replace(self, schedule=self.schedule.respace(num_steps, spacing))

    @property
    def signal(self) -> Float64[np.ndarray, " t"]:
        return np.sqrt(self.schedule.alpha_bar)

    @property
    def sigma(self) -> Float64[np.ndarray, " t"]:
        return np.sqrt(1 - self.schedule.alpha_bar)

    @property
    def time(self) -> Float64[np.ndarray, " t"]:
        return self.schedule.timesteps.astype(np.float64)

    # What follows is that of `Process` but for rounding: alpha_bar itself is exact where the square of its root is not.
    @property
    def signal_power(self) -> Float64[np.ndarray, " t"]:
        return self.schedule.alpha_bar

    @property
    def noise_power(self) -> Float64[np.ndarray, " t"]:
        return 1 - self.schedule.alpha_bar

    @property
    def posterior_variance(self) -> Float64[np.ndarray, " t"]:
        return self.schedule.posterior_variance

    def transition(
        self, earlier: Int[np.ndarray, " n"], later: Int[np.ndarray, " n"]
    ) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
        alpha_bar = np.append(self.schedule.alpha_bar, 1.0)
        share = np.minimum(alpha_bar[later] / alpha_bar[earlier], 1.0)
        return np.sqrt(share), 1 - share

    def random_time(self, keys: Key[Array, " b"]) -> Int[Array, " b"]:
        """Draw rows uniformly, one per key."""
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, self.num_steps))(keys)

    def quarter(self, t: Int[Array, " b"]) -> Int[Array, " b"]:
        """Return the quarter of the rows that t lies in, from 0 (least noise) to 3."""
        return t * 4 // self.num_steps

    def loss_weight(self, t: Int[Array, " b"], weighting: Weighting) -> Float[Array, " b"]:
        """Return w_t of eq. 5."""
        return take(self.loss_weights(weighting), t, 1)

    def loss_weights(self, weighting: Weighting) -> Float64[np.ndarray, " t"]:
        """Return w_t of eq. 5 for every row; "none" is 1. Where the SNR is 0, h weighs an error of eps that is always
        0: there w_t is 0 too, but for "none".

        Raises:
            ValueError: for another weighting.
        """
        snr = self.snr
        # c / SNR, which exists where the SNR is 0; a process of eps has no such row.
        relative = np.ones_like(snr) if self.prediction == "x0" else 1 / (snr + (self.prediction == "v"))
        match weighting:
            case "none":
                return np.ones_like(snr)
            case "min_snr":
                return np.minimum(snr, MIN_SNR_GAMMA) * relative
            case "p2":
                return snr / (1 + snr) * relative
            case _:
                raise ValueError(f"weighting must be one of none, min_snr, p2; got {weighting!r}")

    def posterior(
        self, x_0: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Int[Array, " b"]
    ) -> PosteriorGaussian:
        """Return the posterior of eq. 3."""
        schedule, ndim = self.schedule, x_t.ndim
        return PosteriorGaussian(
            mean=take(schedule.posterior_x_0, t, ndim) * x_0 + take(schedule.posterior_x_t, t, ndim) * x_t,
            variance=take(schedule.posterior_variance, t, ndim),
            log_variance=take(schedule.posterior_log_variance, t, ndim),
        )

    def to_x0(
        self, prediction: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Int[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        """Return the x_0 that the prediction implies at x_t."""
        signal, sigma = self.levels(t, x_t.ndim)
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
        """Return the eps that the prediction implies at x_t."""
        signal, sigma = self.levels(t, x_t.ndim)
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
        """Return the v that the prediction implies at x_t."""
        signal, sigma = self.levels(t, x_t.ndim)
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
        """Return what a perfect network would output for this x_0 and noise."""
        match self.prediction:
            case "eps":
                return noise
            case "x0":
                return x_0
            case "v":
                signal, sigma = self.levels(t, x_0.ndim)
                return signal * noise - sigma * x_0

    def split(
        self, output: Float[Array, " b *channels"]
    ) -> tuple[Float[Array, " b *half"], Float[Array, " b *half"] | None]:
        """Return a network's output as (prediction, variance channels), in float32: halves of the last axis of a
        learned range.

        Raises:
            ValueError: the last axis is odd.
        """
        if self.variance != "learned_range":
            return super().split(output)
        if output.shape[-1] % 2:
            raise ValueError(f"a learned range needs an even number of channels; got {output.shape[-1]}")
        prediction, variance_channels = jnp.split(output.astype(jnp.float32), 2, axis=-1)
        return prediction, variance_channels

    def log_variance(
        self, variance_channels: Float[Array, " b *dims"] | None, t: Int[Array, " b"]
    ) -> Float[Array, " b *ones"]:
        """Return the log variance of the reverse step from row t: [b ...] by eq. 4, or [b] where the variance is fixed.

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
        """Return the ends between which eq. 4 interpolates; they coincide for a fixed variance."""
        small, large = self.schedule.posterior_log_variance, np.log(self.schedule.beta)
        return {"small": (small, small), "large": (large, large), "learned_range": (small, large)}[variance]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """A `VariancePreserving` process as primitive fields, for configurations and files."""

    schedule: Literal["cosine", "linear", "sigmoid"] = "cosine"
    num_steps: int = 1000
    prediction: Prediction = "eps"
    variance: Variance = "small"
    zero_terminal_snr: bool = False
    """Ends the schedule in noise alone, as sampling begins (`Schedule.zero_terminal_snr`); not with eps."""

    def __post_init__(self):
        check_steps(self.num_steps)
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError("zero_terminal_snr leaves nothing that eps could tell x_0 from; set prediction to v or x0")

    @property
    def spacings(self) -> tuple[Spacing, ...]:
        """How rows can be spread: Karras's has no end where the SNR is 0."""
        known: tuple[Spacing, ...] = ("linspace", "leading", "trailing", "karras")
        return known[:-1] if self.zero_terminal_snr else known

    @property
    def times(self) -> tuple[float, float]:
        """First and last step."""
        return 0.0, self.num_steps - 1.0

    def describe(self) -> str:
        """Return a few words for a person."""
        return f"{self.num_steps} {self.schedule} steps"

    @property
    def max_steps(self) -> int:
        """The largest number of rows that sampling may keep."""
        return self.num_steps

    def build(self) -> VariancePreserving:
        """Build the process.

        Raises:
            ValueError: a name is not one of the choices, or there are fewer than 1 step.
        """
        for name, choices in (("prediction", get_args(Prediction)), ("variance", get_args(Variance))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        makers = {"cosine": Schedule.cosine, "linear": Schedule.linear, "sigmoid": Schedule.sigmoid}
        if self.schedule not in makers:
            raise ValueError(f"schedule must be one of {', '.join(makers)}; got {self.schedule!r}")
        schedule = makers[self.schedule](self.num_steps)
        if self.zero_terminal_snr:
            schedule = schedule.zero_terminal_snr()
        return VariancePreserving(schedule=schedule, prediction=self.prediction, variance=self.variance)


def interpolate_log_variance(variance_channels: Array | None, low: Array, high: Array) -> Array:
    """Return eq. 4, with `low` at channel -1 and `high` at +1; `low` alone without channels."""
    if variance_channels is None:
        return low
    fraction = (variance_channels.astype(jnp.float32) + 1) / 2
    return fraction * high + (1 - fraction) * low


def require_vp(process: Process, what: str) -> VariancePreserving:
    """Return `process`, of which `what` needs that it be variance preserving.

    Raises:
        ValueError: it is another kind.
    """
    if not isinstance(process, VariancePreserving):
        raise ValueError(f"{what} needs a variance-preserving process; got {type(process).__name__}; use DDIM")
    return process
