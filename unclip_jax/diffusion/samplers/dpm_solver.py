"""DPM-Solver++ of second order, multistep (Lu et al., arXiv 2211.01095, algorithm 2), and its stochastic form.

(1)  lambda = log sqrt(alpha_bar / (1 - alpha_bar)),  h = lambda_prev - lambda,  h_before the h of the step before
(2)  D = x_0 + w (x_0 - x_0_before),  w = h / (2 h_before), or 1/2 if that is above 1
(3)  ode: x_prev = sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) x_t + sqrt(alpha_bar_prev) (1 - e^-h) D
(4)  sde: x_prev = sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) e^-h x_t + sqrt(alpha_bar_prev) (1 - e^-2h) D
                   + sqrt((1 - alpha_bar_prev) (1 - e^-2h)) noise

With D = x_0 eq. 3 is `DDIM` with eta = 0 and eq. 4 with eta = 1, so the coefficients are taken from there, where they
need no lambda: it is infinite at the data, and at the other end where the schedule ends in noise alone. The first step,
which has none before it, and the last one, whose h is infinite, are of first order. A learned variance is ignored.

The bound on w is ours. Evenly spaced rows are far apart in lambda at the data: the step into the lowest one may be five
times as long as the one before, and to extrapolate so far from there is worse than first order. diffusers' solver
leaves that row out and extrapolates over any step; where no step is over twice as long as the one before, the two are
one.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from unclip_jax.diffusion.gaussian import Process
from unclip_jax.diffusion.samplers.ddim import DDIM
from unclip_jax.diffusion.schedule import check_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver:
    """Eq. 2 with eq. 3 or 4.

    Attributes:
        steps: network evaluations, at most the process's number of steps.
        kind: "ode" is a deterministic map of x_T; "sde" draws noise, as much as `DDPM` with the small variance.
    """

    steps: int
    kind: Literal["ode", "sde"] = "ode"

    def __post_init__(self):
        check_steps(self.steps)
        if self.kind not in ("ode", "sde"):
            raise ValueError(f"DPM-Solver kind must be one of ode, sde; got {self.kind!r}")

    @property
    def is_stochastic(self) -> bool:
        return self.kind == "sde"

    @property
    def is_multistep(self) -> bool:
        return True

    def rows(self, process: Process) -> dict[str, Float[np.ndarray, " s"]]:
        rows = DDIM(steps=self.steps, eta=float(self.is_stochastic)).rows(process)
        with np.errstate(divide="ignore"):
            half_log_snr = np.log(process.schedule.snr) / 2
        h_before = half_log_snr[:-1] - half_log_snr[1:]
        # Row k has h_before[k - 1] for h. From noise alone h_before is infinite, and its step of first order too.
        extrapolation = np.zeros(self.steps)
        extrapolation[1:-1] = h_before[:-1] / (2 * h_before[1:])
        extrapolation[extrapolation > 1] = 0.5
        return rows | {"x_0": (1 + extrapolation) * rows["x_0"], "x_0_before": -extrapolation * rows["x_0"]}

    def update(
        self,
        row: dict[str, Float[Array, ""]],
        x_t: Float[Array, " b *dims"],
        x_0: Float[Array, " b *dims"],
        x_0_before: Float[Array, " b *dims"] | None,
        variance_channels: Float[Array, " b *dims"] | None,
        noise: Float[Array, " b *dims"],
    ) -> Float[Array, " b *dims"]:
        del variance_channels
        assert x_0_before is not None, "a multistep sampler is given it"
        return row["x_0"] * x_0 + row["x_0_before"] * x_0_before + row["x_t"] * x_t + row["noise"] * noise
