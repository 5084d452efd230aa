"""EDM: noise of any size on unscaled data, and a network whose input and output have unit variance.

(1)  x_t = x_0 + sigma eps
(2)  x_0(x_t) = c_skip x_t + c_out F(c_in x_t, c_noise)
(3)  c_skip = sigma_data^2 / (sigma^2 + sigma_data^2),  c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
     c_in = 1 / sqrt(sigma^2 + sigma_data^2),  c_noise = log(sigma) / 4
(4)  log sigma ~ N(p_mean, p_std^2) in training
(5)  L = lambda |x_0(x_t) - x_0|^2,  lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2
(6)  sigma^(1/rho) in equal steps from sigma_max to sigma_min in sampling; the data, sigma = 0, come after the last

Karras et al., arXiv 2206.00364: eq. 7, table 1 and eq. 5. A network's prediction is F, its time c_noise. By eq. 5 the
loss is the plain squared error of F, whose target (x_0 - c_skip x_t) / c_out has variance 1 at every sigma.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Key, Num

from unclip_jax.diffusion.process import (
    QUARTILES,
    Process,
    Spacing,
    Weighting,
    check_steps,
    standard_normal,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMSpec:
    """An `EDM` process as primitive fields, for configurations and files."""

    TAG: ClassVar[tuple[str, str]] = ("type", "edm")
    prediction: ClassVar[str] = "edm"
    variance: ClassVar[str] = "small"
    max_steps: ClassVar[int | None] = None
    spacings: ClassVar[tuple[Spacing, ...]] = ("karras", "linspace")

    sigma_min: float = 0.002
    """Noise of the last row sampled."""
    sigma_max: float = 80.0
    """Noise from which sampling starts."""
    sigma_data: float = 0.5
    """Standard deviation of the data."""
    rho: float = 7.0
    """How much the rows sampled crowd at little noise (eq. 6)."""
    p_mean: float = -1.2
    """Mean of log sigma in training (eq. 4)."""
    p_std: float = 1.2
    """Standard deviation of log sigma in training."""

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max < float("inf"):
            raise ValueError(f"EDM needs 0 < sigma_min < sigma_max; got {self.sigma_min} and {self.sigma_max}")
        for name in ("sigma_data", "rho", "p_std"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"EDM's {name} must be positive; got {getattr(self, name)}")

    @property
    def times(self) -> tuple[float, float]:
        """Lowest and highest c_noise that is sampled at."""
        return math.log(self.sigma_min) / 4, math.log(self.sigma_max) / 4

    def describe(self) -> str:
        """Return a few words for a person."""
        return f"EDM, sigma {self.sigma_min:g} to {self.sigma_max:g}"

    def build(self) -> "EDM":
        """Build the process, without rows: `EDM.respace` gives them."""
        return EDM(spec=self)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM(Process):
    """Eq. 1 to 6. It is trained in continuous time, and has rows once it is respaced.

    Attributes:
        sigmas: of the rows, lowest first.
    """

    spec: EDMSpec = EDMSpec()
    sigmas: tuple[float, ...] = ()

    prediction: ClassVar[str] = "edm"  # pyright: ignore[reportIncompatibleVariableOverride]
    variance: ClassVar[str] = "small"  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def signal(self) -> Float64[np.ndarray, " t"]:
        return np.ones(len(self.sigmas))

    @property
    def sigma(self) -> Float64[np.ndarray, " t"]:
        return np.array(self.sigmas, np.float64)

    @property
    def time(self) -> Float64[np.ndarray, " t"]:
        return np.log(self.sigma) / 4

    @property
    def initial_scale(self) -> float:
        return self.spec.sigma_max

    def respace(self, num_steps: int, spacing: Spacing = "linspace") -> "EDM":
        """Return the process on the `num_steps` rows of eq. 6, which "linspace" and "karras" both mean; a single one is
        sigma_max.

        Raises:
            ValueError: `num_steps` is not a whole number of at least 1, or for another spacing.
        """
        check_steps(num_steps)
        if spacing not in ("linspace", "karras"):
            raise ValueError(f"spacing of an EDM process must be karras (or linspace, the same); got {spacing!r}")
        if num_steps == len(self.sigmas):
            return self
        # From the noise downwards, so that a single step keeps the noisiest row.
        first, last = (sigma ** (1 / self.spec.rho) for sigma in (self.spec.sigma_max, self.spec.sigma_min))
        sigmas = np.linspace(first, last, num_steps)[::-1] ** self.spec.rho
        return dataclasses.replace(self, sigmas=tuple(sigmas.tolist()))

    def levels_at(self, time: Float[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Return signal and sigma at any time c_noise."""
        return jnp.ones_like(time), jnp.exp(4 * time)

    def random_time(self, keys: Key[Array, " b"]) -> Float[Array, " b"]:
        """Draw c_noise by eq. 4, one per key."""
        return (self.spec.p_mean + self.spec.p_std * standard_normal(keys)) / 4

    def quarter(self, t: Num[Array, " b"]) -> Int[Array, " b"]:
        bounds = (self.spec.p_mean + self.spec.p_std * np.array(QUARTILES)) / 4
        return jnp.searchsorted(jnp.asarray(bounds, jnp.float32), self.time_of(t), side="right")

    def loss_weight(self, t: Num[Array, " b"], weighting: Weighting) -> Float[Array, " b"]:
        """Return 1, by which the squared error of F is that of eq. 5; the distribution of eq. 4 does the weighting.

        Raises:
            ValueError: for a weighting other than "none".
        """
        if weighting != "none":
            raise ValueError(f"EDM weighs noise levels by p_mean and p_std; set weighting to none, not to {weighting}")
        return jnp.ones(t.shape, jnp.float32)

    def scale_input(self, x_t: Float[Array, " b *dims"], t: Num[Array, " b"]) -> Float[Array, " b *dims"]:
        """Return c_in x_t."""
        return x_t / self._norm(self.levels(t, x_t.ndim)[1])

    def target(
        self, x_0: Float[Array, " b *dims"], noise: Float[Array, " b *dims"], t: Num[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        # (x_0 - c_skip (x_0 + sigma noise)) / c_out, without the difference that vanishes where sigma is small.
        data, (_, sigma) = self.spec.sigma_data, self.levels(t, x_0.ndim)
        return (sigma / data * x_0 - data * noise) / self._norm(sigma)

    def to_x0(
        self, prediction: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Num[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        data, (_, sigma) = self.spec.sigma_data, self.levels(t, x_t.ndim)
        norm = self._norm(sigma)
        return jnp.square(data / norm) * x_t + sigma * data / norm * prediction

    def to_eps(
        self, prediction: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Num[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        # (x_t - x_0(x_t)) / sigma, with 1 - c_skip = sigma^2 c_in^2.
        _, sigma = self.levels(t, x_t.ndim)
        norm = self._norm(sigma)
        return sigma / jnp.square(norm) * x_t - self.spec.sigma_data / norm * prediction

    def _norm(self, sigma: Array) -> Array:
        """1 / c_in."""
        return jnp.sqrt(jnp.square(sigma) + self.spec.sigma_data**2)
