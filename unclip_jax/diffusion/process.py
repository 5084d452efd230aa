"""A diffusion process: two columns, and the time that a network is conditioned on.

(1)  x_t = signal x_0 + sigma eps,  eps ~ N(0, I)
(2)  output = model_fn(scale_input(x_t), time, cond)
(3)  q(x_t | x_prev) = N(kept x_prev, added),  kept = signal / signal_prev,  added = sigma^2 - kept^2 sigma_prev^2
(4)  Var[x_prev | x_t, x_0] = added sigma_prev^2 / sigma^2

Eq. 3 and 4 hold for every Gaussian process (Kingma et al., arXiv 2107.00630, app. A), so samplers are written once, in
these columns; at the data signal is 1 and sigma 0.

A noise level `t` is named by its row of the columns, int [b], lowest noise first; a process that is trained in
continuous time also takes the time itself, float [b]. x is [b ...] of any rank.
"""

import abc
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Key, Num, PyTree, Shaped

Spacing = Literal["linspace", "leading", "trailing", "karras"]
Weighting = Literal["none", "min_snr", "p2"]

ModelFn = Callable[[Float[Array, " b *dims"], Float[Array, " b"], PyTree], Float[Array, " b *channels"]]
"""(x_t, time, cond) -> output, the waist between the mathematics and the networks; time is float32."""


class Process(abc.ABC):
    """What losses, guidance and samplers know of a process. Frozen, hashable, a pytree without leaves."""

    prediction: Any
    """The name of what a network outputs."""
    variance: Any
    """Of the reverse steps: "small" is eq. 4."""

    @property
    @abc.abstractmethod
    def signal(self) -> Float64[np.ndarray, " t"]:
        """Eq. 1; strictly decreasing relative to `sigma`. Only the last row may be 0."""

    @property
    @abc.abstractmethod
    def sigma(self) -> Float64[np.ndarray, " t"]:
        """Eq. 1; positive."""

    @property
    @abc.abstractmethod
    def time(self) -> Float64[np.ndarray, " t"]:
        """What a network is conditioned on in each row; strictly increasing but for rounding."""

    @abc.abstractmethod
    def respace(self, num_steps: int, spacing: Spacing = "linspace") -> "Process":
        """Return the process on `num_steps` rows; itself if it has so many evenly spaced ones.

        Raises:
            ValueError: `num_steps` is not a whole number of at least 1 or more than there are, or the process has no
                such spacing.
        """

    @abc.abstractmethod
    def random_time(self, keys: Key[Array, " b"]) -> Num[Array, " b"]:
        """Draw the `t` to train at, one per key: int rows, or float times of a continuous process."""

    @abc.abstractmethod
    def quarter(self, t: Num[Array, " b"]) -> Int[Array, " b"]:
        """Return the quartile of `random_time` that t lies in, from 0 (least noise) to 3."""

    @abc.abstractmethod
    def loss_weight(self, t: Num[Array, " b"], weighting: Weighting) -> Float[Array, " b"]:
        """Return the weight of the squared error at t.

        Raises:
            ValueError: the process has no such weighting.
        """

    @abc.abstractmethod
    def target(
        self, x_0: Float[Array, " b *dims"], noise: Float[Array, " b *dims"], t: Num[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        """Return what a perfect network would output for this x_0 and noise."""

    @abc.abstractmethod
    def to_x0(
        self, prediction: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Num[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        """Return the x_0 that the prediction implies at x_t."""

    @abc.abstractmethod
    def to_eps(
        self, prediction: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Num[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        """Return the eps that the prediction implies at x_t."""

    def levels_at(self, time: Float[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Return signal and sigma at any time.

        Raises:
            ValueError: the process is discrete.
        """
        raise ValueError(f"{type(self).__name__} is discrete; name a noise level by its row, an int; got {time.dtype}")

    @property
    def num_steps(self) -> int:
        """Number of rows."""
        return len(self.sigma)

    @property
    def initial_scale(self) -> float:
        """Deviation of the x_T from which sampling starts."""
        return 1.0

    @property
    def signal_power(self) -> Float64[np.ndarray, " t"]:
        """signal^2."""
        return self.signal**2

    @property
    def noise_power(self) -> Float64[np.ndarray, " t"]:
        """sigma^2."""
        return self.sigma**2

    @property
    def snr(self) -> Float64[np.ndarray, " t"]:
        """Signal-to-noise ratio signal^2 / sigma^2."""
        return self.signal_power / self.noise_power

    @property
    def posterior_variance(self) -> Float64[np.ndarray, " t"]:
        """Eq. 4 from each row to the one below; 0 in the first, which leads to the data."""
        rows = np.arange(self.num_steps)
        _, added = self.transition(rows - 1, rows)
        return added * below(self.noise_power, 0.0) / self.noise_power

    def transition(
        self, earlier: Int[np.ndarray, " n"], later: Int[np.ndarray, " n"]
    ) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
        """Return `kept` and `added` of eq. 3 from rows to rows of at least as much noise; row -1 is the data."""
        signal, noise_power = np.append(self.signal, 1.0), np.append(self.noise_power, 0.0)
        kept = signal[later] / signal[earlier]
        return kept, np.maximum(noise_power[later] - kept**2 * noise_power[earlier], 0)

    def levels(self, t: Num[Array, " b"], ndim: int) -> tuple[Float[Array, " b *ones"], Float[Array, " b *ones"]]:
        """Return signal and sigma at t as float32, with unit axes appended up to rank `ndim`."""
        if jnp.issubdtype(t.dtype, jnp.integer):
            return take(self.signal, t, ndim), take(self.sigma, t, ndim)
        signal, sigma = self.levels_at(t)
        return expand(signal, ndim), expand(sigma, ndim)

    def time_of(self, t: Num[Array, " b"]) -> Float[Array, " b"]:
        """Return the time that a network is conditioned on at t, float32."""
        return take(self.time, t, 1) if jnp.issubdtype(t.dtype, jnp.integer) else t.astype(jnp.float32)

    def q_sample(
        self, x_0: Float[Array, " b *dims"], t: Num[Array, " b"], noise: Float[Array, " b *dims"]
    ) -> Float[Array, " b *dims"]:
        """Return x_t of eq. 1."""
        signal, sigma = self.levels(t, x_0.ndim)
        return signal * x_0 + sigma * noise

    def scale_input(self, x_t: Float[Array, " b *dims"], t: Num[Array, " b"]) -> Float[Array, " b *dims"]:
        """Return what a network is given of x_t: x_t itself, unless the process has preconditioning."""
        del t
        return x_t

    def network_inputs(
        self, x_t: Float[Array, " b *dims"], t: Num[Array, " b"]
    ) -> tuple[Float[Array, " b *dims"], Float[Array, " b"]]:
        """Return the first two arguments of the network in eq. 2."""
        return self.scale_input(x_t, t), self.time_of(t)

    def split(
        self, output: Float[Array, " b *channels"]
    ) -> tuple[Float[Array, " b *half"], Float[Array, " b *half"] | None]:
        """Return a network's output as (prediction, variance channels or None), in float32."""
        return output.astype(jnp.float32), None


def expand(values: Shaped[Array, " b"], ndim: int) -> Shaped[Array, " b *ones"]:
    """Append unit axes up to rank `ndim`."""
    return values.reshape(values.shape + (1,) * (ndim - 1))


def take(table: Float64[np.ndarray, " t"], t: Int[Array, " b"], ndim: int) -> Float[Array, " b *ones"]:
    """Return rows t of a float64 table as float32, with unit axes appended up to rank `ndim`."""
    return expand(jnp.asarray(table, jnp.float32)[t], ndim)


def below(column: Float64[np.ndarray, " t"], at_data: float) -> Float64[np.ndarray, " t"]:
    """Return the column one row lower in noise; `at_data` is what stands below the first row."""
    return np.append(at_data, column[:-1])


def check_steps(num_steps: int) -> None:
    """Raise ValueError unless it is a whole number of at least 1, and no more than a table is made of."""
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1; got {num_steps!r}")
    if num_steps > MAX_STEPS:
        raise ValueError(f"steps must be at most {MAX_STEPS}; got {num_steps}")


def standard_normal(keys: Key[Array, " b"]) -> Float[Array, " b"]:
    """Draw one number per key."""
    return jax.vmap(lambda key: jax.random.normal(key, (), jnp.float32))(keys)


MAX_STEPS = 100_000
QUARTILES = (-0.6744897501960817, 0.0, 0.6744897501960817)
"""Of the standard normal distribution."""
