"""Rectified flow: a straight line from the data to noise, along which a network predicts the velocity.

(1)  x_t = (1 - t) x_0 + t eps
(2)  v = dx_t / dt = eps - x_0;  x_0 = x_t - t v,  eps = x_t + (1 - t) v
(3)  logit t ~ N(mean, std^2) in training
(4)  t' = s t / (1 + (s - 1) t), of the t of eq. 3 and of the rows sampled
(5)  s = sqrt(dim / base_dim)
(6)  rows sampled: t = i / n before eq. 4, i from n (noise alone) down to 1; the data, t = 0, come after the last

Eq. 1 and 2: Liu et al., arXiv 2209.03003. Eq. 3 to 5: Esser et al. (Stable Diffusion 3), arXiv 2403.03206, sec. 3.1 and
5.3.2; by eq. 5 data of `dim` numbers are as uncertain at t' as data of `base_dim` were at t.

The time that a network is conditioned on is 1000 t': the embeddings of networks were made for steps up to a thousand.
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

TIME_SCALE = 1000.0


def dimension_shift(dim: int, base_dim: int) -> float:
    """Return s of eq. 5, as a number for `FlowSpec.shift`, so that files say what a network was trained with.

    Args:
        dim: numbers in an example, or its pixels.
        base_dim: the same where s is 1.

    Raises:
        ValueError: either is less than 1.
    """
    if dim < 1 or base_dim < 1:
        raise ValueError(f"a shift by dimension needs dimensions of at least 1; got {dim} and {base_dim}")
    return math.sqrt(dim / base_dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSpec:
    """A `Flow` process as primitive fields, for configurations and files."""

    TAG: ClassVar[tuple[str, str]] = ("type", "flow")
    prediction: ClassVar[str] = "velocity"
    variance: ClassVar[str] = "small"
    max_steps: ClassVar[int | None] = None
    spacings: ClassVar[tuple[Spacing, ...]] = ("linspace", "trailing")

    mean: float = 0.0
    """Mean of logit t in training, before the shift; above 0 there is more noise."""
    std: float = 1.0
    """Standard deviation of logit t in training."""
    shift: float = 1.0
    """Shift of the times towards noise, in training and sampling; 1 is none. `dimension_shift` gives it by size."""

    def __post_init__(self):
        if not math.isfinite(self.mean):
            raise ValueError(f"a flow's mean must be finite; got {self.mean}")
        for name in ("std", "shift"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"a flow's {name} must be positive; got {getattr(self, name)}")

    @property
    def times(self) -> tuple[float, float]:
        """Lowest and highest time."""
        return 0.0, TIME_SCALE

    def describe(self) -> str:
        """Return a few words for a person."""
        return f"rectified flow, shift {self.shift:g}"

    def build(self) -> "Flow":
        """Build the process, without rows: `Flow.respace` gives them."""
        return Flow(spec=self)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow(Process):
    """Eq. 1 to 6. It is trained in continuous time, and has rows once it is respaced.

    Attributes:
        rows: number of rows.
    """

    spec: FlowSpec = FlowSpec()
    rows: int = 0

    prediction: ClassVar[str] = "velocity"  # pyright: ignore[reportIncompatibleVariableOverride]
    variance: ClassVar[str] = "small"  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def signal(self) -> Float64[np.ndarray, " t"]:
        return 1 - self.sigma

    @property
    def sigma(self) -> Float64[np.ndarray, " t"]:
        return self._shift(np.arange(1, self.rows + 1) / max(self.rows, 1))

    @property
    def time(self) -> Float64[np.ndarray, " t"]:
        return TIME_SCALE * self.sigma

    def respace(self, num_steps: int, spacing: Spacing = "linspace") -> "Flow":
        """Return the process on the `num_steps` rows of eq. 6, which "linspace" and "trailing" both mean.

        Raises:
            ValueError: `num_steps` is not a whole number of at least 1, or for another spacing.
        """
        check_steps(num_steps)
        if spacing not in ("linspace", "trailing"):
            raise ValueError(f"spacing of a flow must be linspace (or trailing, the same); got {spacing!r}")
        return dataclasses.replace(self, rows=num_steps)

    def levels_at(self, time: Float[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Return signal and sigma at any time in [0, 1000]."""
        sigma = time / TIME_SCALE
        return 1 - sigma, sigma

    def random_time(self, keys: Key[Array, " b"]) -> Float[Array, " b"]:
        """Draw 1000 t' by eq. 3 and 4, one per key."""
        logit = self.spec.mean + self.spec.std * standard_normal(keys)
        return TIME_SCALE * self._shift(jax.nn.sigmoid(logit))

    def quarter(self, t: Num[Array, " b"]) -> Int[Array, " b"]:
        bounds = TIME_SCALE * self._shift(1 / (1 + np.exp(-self.spec.mean - self.spec.std * np.array(QUARTILES))))
        return jnp.searchsorted(jnp.asarray(bounds, jnp.float32), self.time_of(t), side="right")

    def loss_weight(self, t: Num[Array, " b"], weighting: Weighting) -> Float[Array, " b"]:
        """Return 1; the distribution of eq. 3 does the weighting.

        Raises:
            ValueError: for a weighting other than "none".
        """
        if weighting != "none":
            raise ValueError(f"a flow weighs times by mean and std; set weighting to none, not to {weighting}")
        return jnp.ones(t.shape, jnp.float32)

    def target(
        self, x_0: Float[Array, " b *dims"], noise: Float[Array, " b *dims"], t: Num[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        del t
        return noise.astype(jnp.float32) - x_0

    def to_x0(
        self, prediction: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Num[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        return x_t - self.levels(t, x_t.ndim)[1] * prediction

    def to_eps(
        self, prediction: Float[Array, " b *dims"], x_t: Float[Array, " b *dims"], t: Num[Array, " b"]
    ) -> Float[Array, " b *dims"]:
        return x_t + self.levels(t, x_t.ndim)[0] * prediction

    def _shift(self, t):
        """Eq. 4."""
        return self.spec.shift * t / (1 + (self.spec.shift - 1) * t)
