"""Ancestral sampling on a strided schedule (DDPM, arXiv 2006.11239; improved DDPM, arXiv 2102.09672, sec. 4).

(1)  x_prev = posterior_x_0 x_0 + posterior_x_t x_t + sqrt(variance) noise

with the posterior, and both ends of a learned variance range, taken from the respaced schedule. The last step
has posterior_x_0 = 1 and posterior_x_t = 0, and adds no noise.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unclip_jax.diffusion.gaussian import Process, interpolate_log_variance
from unclip_jax.diffusion.schedule import check_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM:
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

    @property
    def is_multistep(self) -> bool:
        return False

    def rows(self, process: Process) -> dict[str, Float[np.ndarray, " s"]]:
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
        self,
        row: dict[str, Float[Array, ""]],
        x_t: Float[Array, " b *dims"],
        x_0: Float[Array, " b *dims"],
        x_0_before: Float[Array, " b *dims"] | None,
        variance_channels: Float[Array, " b *dims"] | None,
        noise: Float[Array, " b *dims"],
    ) -> Float[Array, " b *dims"]:
        del x_0_before
        low, high = row["log_variance_low"], row["log_variance_high"]
        sigma = row["adds_noise"] * jnp.exp(0.5 * interpolate_log_variance(variance_channels, low, high))
        return row["x_0"] * x_0 + row["x_t"] * x_t + sigma * noise
