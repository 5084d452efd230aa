"""DDIM (Song et al., arXiv 2010.02502, eq. 12 and 16).

(1)  sigma = eta sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) sqrt(1 - alpha_bar / alpha_bar_prev)
(2)  x_prev = sqrt(alpha_bar_prev) x_0 + sqrt(1 - alpha_bar_prev - sigma^2) eps + sigma noise
(3)  eps = (x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar)

Eq. 3 is substituted into eq. 2, so eps always belongs to the x_0 of this step, thresholded or not. eta = 0 is
a deterministic map of x_T; eta = 1 is `DDPM` with the small variance. A learned variance is ignored.
"""

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from unclip_jax.diffusion.gaussian import Process
from unclip_jax.diffusion.schedule import check_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """Eq. 2.

    Attributes:
        steps: network evaluations, at most the process's number of steps.
        eta: of eq. 1, in [0, 1].
    """

    steps: int
    eta: float = 0.0

    def __post_init__(self):
        check_steps(self.steps)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM eta must lie between 0 and 1; got {self.eta}")

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    @property
    def is_multistep(self) -> bool:
        return False

    def rows(self, process: Process) -> dict[str, Float[np.ndarray, " s"]]:
        alpha_bar, alpha_bar_prev = process.schedule.alpha_bar, process.schedule.alpha_bar_prev
        sigma = self.eta * np.sqrt(process.schedule.posterior_variance)
        # With eta = 1 nothing is left for eps where alpha_bar is 0, or less by rounding.
        x_t = np.sqrt(np.maximum(1 - alpha_bar_prev - sigma**2, 0) / (1 - alpha_bar))
        return {"x_0": np.sqrt(alpha_bar_prev) - x_t * np.sqrt(alpha_bar), "x_t": x_t, "noise": sigma}

    def update(
        self,
        row: dict[str, Float[Array, ""]],
        x_t: Float[Array, " b *dims"],
        x_0: Float[Array, " b *dims"],
        x_0_before: Float[Array, " b *dims"] | None,
        variance_channels: Float[Array, " b *dims"] | None,
        noise: Float[Array, " b *dims"],
    ) -> Float[Array, " b *dims"]:
        del x_0_before, variance_channels
        return row["x_0"] * x_0 + row["x_t"] * x_t + row["noise"] * noise
