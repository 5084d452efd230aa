"""DDIM (Song et al., arXiv 2010.02502, eq. 12 and 16), and Euler's method.

(1)  noise_prev = eta sqrt(posterior_variance)
(2)  x_prev = signal_prev x_0 + sqrt(sigma_prev^2 - noise_prev^2) eps + noise_prev noise
(3)  eps = (x_t - signal x_0) / sigma

Eq. 3 is substituted into eq. 2, so eps always belongs to the x_0 of this step, thresholded or not. eta = 0 is
a deterministic map of x_T; eta = 1 draws x_prev from q(x_prev | x_t, x_0), as `DDPM` with the small variance does. A
learned variance is ignored.

With eta = 0 eq. 2 is x_t + (signal_prev - signal) x_0 + (sigma_prev - sigma) eps, a step along the straight line
between two noise levels: Euler's method for the probability flow of EDM (x_t + (sigma_prev - sigma) dx/dsigma) and of a
rectified flow (x_t + (t_prev - t) v).
"""

import dataclasses

import numpy as np
from jaxtyping import Float64

from unclip_jax.diffusion.process import Process, below, check_steps
from unclip_jax.diffusion.samplers.sampler import OneEvaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(OneEvaluation):
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

    def coefficients(self, process: Process) -> dict[str, Float64[np.ndarray, " s"]]:
        noise = self.eta * np.sqrt(process.posterior_variance)
        # With eta = 1 nothing is left for eps where signal is 0, or less by rounding.
        x_t = np.sqrt(np.maximum(below(process.noise_power, 0.0) - noise**2, 0) / process.noise_power)
        return {"x_0": below(process.signal, 1.0) - x_t * process.signal, "x_t": x_t, "noise": noise}
