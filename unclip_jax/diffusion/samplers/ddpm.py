"""Ancestral sampling on a strided schedule (DDPM, arXiv 2006.11239; improved DDPM, arXiv 2102.09672, sec. 4).

(1)  x_prev = posterior_x_0 x_0 + posterior_x_t x_t + sqrt(variance) noise

with the posterior, and both ends of a learned variance range, taken from the respaced schedule. The last step
has posterior_x_0 = 1 and posterior_x_t = 0, and adds no noise. For variance-preserving processes alone; `DDIM` with
eta = 1 draws the same for all.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from unclip_jax.diffusion.gaussian import interpolate_log_variance, require_vp
from unclip_jax.diffusion.process import Process, check_steps
from unclip_jax.diffusion.samplers.sampler import Denoised, OneEvaluation, Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(OneEvaluation):
    """Eq. 1.

    Attributes:
        steps: network evaluations, at most the process's number of steps.
        variance: "process" is what the process was trained with; "small" and "large" override it.
    """

    steps: int
    variance: Literal["process", "small", "large"] = "process"

    def __post_init__(self):
        check_steps(self.steps)
        if self.variance not in ("process", "small", "large"):
            raise ValueError(f"DDPM variance must be one of process, small, large; got {self.variance!r}")

    @property
    def is_stochastic(self) -> bool:
        return True

    def coefficients(self, process: Process) -> dict[str, Float64[np.ndarray, " s"]]:
        process = require_vp(process, "DDPM")
        variance = process.variance if self.variance == "process" else self.variance
        low, high = process.log_variance_range(variance)
        return {
            "x_0": process.schedule.posterior_x_0,
            "x_t": process.schedule.posterior_x_t,
            "log_variance_low": low,
            "log_variance_high": high,
            "adds_noise": np.append(0.0, np.ones(self.steps - 1)),
        }

    def update(
        self, carry: Point, prediction: Denoised, row: dict[str, Float[Array, ""]], noise: Float[Array, " b *dims"]
    ) -> Point:
        low, high = row["log_variance_low"], row["log_variance_high"]
        log_variance = interpolate_log_variance(prediction.variance_channels, low, high)
        sigma = row["adds_noise"] * jnp.exp(0.5 * log_variance)
        return Point(row["x_0"] * prediction.x_0 + row["x_t"] * carry.x + sigma * noise)
