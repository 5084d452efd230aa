"""DPM-Solver++ of second order, multistep (Lu et al., arXiv 2211.01095, algorithm 2), and its stochastic form.

(1)  lambda = log(signal / sigma),  h = lambda_prev - lambda,  last_h the h of the step before
(2)  D = x_0 + w (x_0 - last_x_0),  w = h / (2 last_h), or 1/2 if that is above 1
(3)  ode: x_prev = sigma_prev / sigma x_t + signal_prev (1 - e^-h) D
(4)  sde: x_prev = sigma_prev / sigma e^-h x_t + signal_prev (1 - e^-2h) D + sigma_prev sqrt(1 - e^-2h) noise

With D = x_0 eq. 3 is `DDIM` with eta = 0 and eq. 4 with eta = 1, so the coefficients are taken from there, where they
need no lambda: it is infinite at the data, and at the other end where the schedule ends in noise alone. The first step,
which has none before it, and the last one, whose h is infinite, are of first order. A learned variance is ignored.

The bound on w is ours. Evenly spaced rows are far apart in lambda at the data: the step into the lowest one may be five
times as long as the one before, and to extrapolate so far from there is worse than first order. diffusers' solver
leaves that row out and extrapolates over any step; where no step is over twice as long as the one before, the two are
one.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from unclip_jax.diffusion.process import Process, check_steps
from unclip_jax.diffusion.samplers.ddim import DDIM
from unclip_jax.diffusion.samplers.sampler import Denoised, OneEvaluation


class DPMSolverCarry(NamedTuple):
    """x_t, and x_0 of the step before; zeros in the first."""

    x: Float[Array, " b *dims"]
    last_x_0: Float[Array, " b *dims"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver(OneEvaluation):
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

    def coefficients(self, process: Process) -> dict[str, Float64[np.ndarray, " s"]]:
        table = DDIM(steps=self.steps, eta=float(self.is_stochastic)).coefficients(process)
        with np.errstate(divide="ignore"):
            half_log_snr = np.log(process.snr) / 2
        last_h = half_log_snr[:-1] - half_log_snr[1:]
        # Row k has last_h[k - 1] for h. From noise alone last_h is infinite, and its step of first order too.
        extrapolation = np.zeros(self.steps)
        extrapolation[1:-1] = last_h[:-1] / (2 * last_h[1:])
        extrapolation[extrapolation > 1] = 0.5
        return table | {"x_0": (1 + extrapolation) * table["x_0"], "last_x_0": -extrapolation * table["x_0"]}

    def start(self, x_T: Float[Array, " b *dims"]) -> DPMSolverCarry:
        return DPMSolverCarry(x=x_T, last_x_0=jnp.zeros_like(x_T))

    def update(
        self,
        carry: DPMSolverCarry,
        prediction: Denoised,
        row: dict[str, Float[Array, ""]],
        noise: Float[Array, " b *dims"],
    ) -> DPMSolverCarry:
        x_0, last_x_0 = prediction.x_0, carry.last_x_0
        x = row["x_0"] * x_0 + row["last_x_0"] * last_x_0 + row["x_t"] * carry.x + row["noise"] * noise
        return DPMSolverCarry(x=x, last_x_0=x_0)
