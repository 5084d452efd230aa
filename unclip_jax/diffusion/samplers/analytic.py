"""Analytic-DPM: ancestral sampling with the best isotropic variance of each step (Bao et al., arXiv 2201.06503).

(1)  x_prev = posterior_x_0 x_0 + posterior_x_t x_t + sqrt(variance) noise
(2)  variance = posterior_variance + posterior_x_0^2 x0_variance                                      (theorem 1)
(3)  x0_variance = E |x_0 - x_0(x_t)|^2 / d
(4)  0 <= x0_variance <= (1 - alpha_bar) / alpha_bar;  <= ((high - low) / 2)^2 for data in [low, high]  (theorem 2)

The paper writes eq. 2 with Gamma = E |eps(x_t)|^2 / d, and (1 - Gamma) (1 - alpha_bar) / alpha_bar for x0_variance. For
the optimal network, whose x_0(x_t) is E[x_0 | x_t], that is eq. 3; but where there is much noise 1 - Gamma is a small
difference, 2e-9 in the last row of the cosine schedule, which no number of examples resolves. Eq. 3 has no
difference, is defined where alpha_bar is 0, and for a network that is not optimal it is the variance that is best for
its own mean (Bao et al., arXiv 2206.07309). x_0 is thresholded in it if it is in sampling.

The last step adds no noise. A learned variance is ignored. For variance-preserving processes alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Num, PyTree

from unclip_jax.diffusion.gaussian import require_vp
from unclip_jax.diffusion.guidance import UNIT_THRESHOLD, Threshold
from unclip_jax.diffusion.noise import NoiseSource
from unclip_jax.diffusion.process import ModelFn, Process, check_steps
from unclip_jax.diffusion.samplers.sampler import OneEvaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class X0Variance:
    """Eq. 3 at some noise levels: a statistic of a network and its data, as primitive fields.

    Attributes:
        alpha_bar: noise levels, strictly decreasing, in [0, 1).
        variance: eq. 3 at each.
    """

    alpha_bar: tuple[float, ...]
    variance: tuple[float, ...]

    def __post_init__(self):
        if not (len(self.alpha_bar) and len(self.alpha_bar) == len(self.variance)):
            raise ValueError(f"x0_variance has {len(self.variance)} values for {len(self.alpha_bar)} noise levels")
        if not (np.diff((1.0, *self.alpha_bar)) < 0).all() or self.alpha_bar[-1] < 0:
            raise ValueError("the noise levels of x0_variance must be strictly decreasing and lie in [0, 1)")
        if not all(0 <= value < np.inf for value in self.variance):
            raise ValueError("x0_variance must be finite and at least 0")

    @classmethod
    def of(cls, process: Process, rows: Int[np.ndarray, " s"], errors: Num[np.ndarray, "s n"]) -> "X0Variance":
        """Average what `squared_errors` found at `rows`, for all examples of all batches."""
        alpha_bar = require_vp(process, "x0_variance").schedule.alpha_bar[rows]
        variance = errors.mean(axis=1, dtype=np.float64)
        return cls(alpha_bar=tuple(alpha_bar.tolist()), variance=tuple(variance.tolist()))

    def at(self, alpha_bar: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " t"]:
        """Interpolate the statistic to any noise levels: its log is linear in log phi with cos phi = sqrt(alpha_bar),
        as that of Gaussian data nearly is, and constant beyond the ends."""
        smallest = np.finfo(np.float64).tiny
        known = np.log(np.maximum(self.variance, smallest))
        return np.exp(np.interp(_log_phi(alpha_bar), _log_phi(np.array(self.alpha_bar)), known))


def _log_phi(alpha_bar: np.ndarray) -> np.ndarray:
    return np.log(np.arctan2(np.sqrt(1 - alpha_bar), np.sqrt(alpha_bar)))


def squared_errors(
    process: Process,
    model_fn: ModelFn,
    cond: PyTree,
    x_0: Float[Array, " b *dims"],
    noise: NoiseSource,
    rows: Int[np.ndarray, " s"],
    *,
    threshold: Threshold = UNIT_THRESHOLD,
) -> Float[Array, "s b"]:
    """Return |x_0 - x_0(x_t)|^2 / d at rows of the process's schedule. Pure, to be jitted by the caller.

    Args:
        x_0: data in the space that the process works in: images in [-1, 1], or z_i normalised as for the prior.
        noise: its i-th step makes x_t of the i-th of `rows`.
        rows: 50 spread as `Schedule.respace` does are enough for a thousand; both ends should be among them.
        threshold: of the sampling that the statistic is for.
    """
    noise.check(x_0.shape, len(rows))

    def at(scanned: tuple[Array, Array]) -> Array:
        i, row = scanned
        t = jnp.broadcast_to(row, x_0.shape[:1])
        x_t = process.q_sample(x_0, t, noise.step(i, x_0.shape))
        prediction, _ = process.split(model_fn(*process.network_inputs(x_t, t), cond))
        error = threshold.apply(process.to_x0(prediction, x_t, t)) - x_0
        return jnp.square(error).mean(axis=tuple(range(1, x_0.ndim)))

    return jax.lax.map(at, tuple(np.asarray(column, np.int32) for column in (np.arange(len(rows)), rows)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalyticDPM(OneEvaluation):
    """Eq. 1 and 2.

    Attributes:
        steps: network evaluations, at most the process's number of steps.
        x0_variance: eq. 3, measured with the network.
        data_range: (low, high) of eq. 4.
    """

    steps: int
    x0_variance: X0Variance
    data_range: tuple[float, float] | None = None

    def __post_init__(self):
        check_steps(self.steps)
        if self.data_range is not None and not self.data_range[0] < self.data_range[1]:
            raise ValueError(f"the data's range must be (low, high); got {self.data_range}")

    @property
    def is_stochastic(self) -> bool:
        return True

    def coefficients(self, process: Process) -> dict[str, Float64[np.ndarray, " s"]]:
        schedule = require_vp(process, "Analytic-DPM").schedule
        with np.errstate(divide="ignore"):
            x0_variance = np.minimum(self.x0_variance.at(schedule.alpha_bar), 1 / schedule.snr)
        if self.data_range is not None:
            low, high = self.data_range
            x0_variance = np.minimum(x0_variance, ((high - low) / 2) ** 2)
        variance = schedule.posterior_variance + schedule.posterior_x_0**2 * x0_variance
        return {
            "x_0": schedule.posterior_x_0,
            "x_t": schedule.posterior_x_t,
            "noise": np.append(0.0, np.sqrt(variance[1:])),
        }
