"""RePaint: conditional sampling with an unconditional model (Lugmayr et al., 2201.09865).

Where x is known, each step replaces what the model drew by the known pixels at that step's noise; elsewhere the model's
own sample stays. So that both sides come to agree, every few rows the sample is noised again and denoised once more:

(1)  x_prev = known:  signal_prev x_known + sigma_prev noise
              else:   the sampler's update of x_t
(2)  x_later = kept x_prev + sqrt(added) noise,  by `Process.transition`

(1): algorithm 1, lines 4 to 8. (2): line 10 over several rows at once, which is one Gaussian.
The last step gives back x_known itself.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int64, PyTree

from unclip_jax.diffusion.guidance import UNIT_THRESHOLD, Threshold
from unclip_jax.diffusion.noise import NoiseSource
from unclip_jax.diffusion.process import ModelFn, Process, below
from unclip_jax.diffusion.samplers.loop import initial
from unclip_jax.diffusion.samplers.sampler import Denoised, Sampler, carries_only_x

DRAWS = 3
"""Noises that a step takes: the sampler's, that of the known pixels, and that of equation (2)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampling:
    """How often and how far the sample goes back.

    Attributes:
        jump: rows between two places from which the sample goes back, and how many it goes back.
        times: how often each stretch of `jump` rows is denoised; 1 never goes back.
    """

    jump: int = 10
    times: int = 10

    def __post_init__(self):
        if self.jump < 1 or self.times < 1:
            raise ValueError(f"RePaint needs a jump and times of at least 1; got {self.jump} and {self.times}")

    def rows(self, num_steps: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return the row of each network evaluation, in order, and the row that equation (2) leads to after it.

        The latter is the row below the evaluated one where the sample does not go back, and so -1 at the end.
        """
        order: list[int] = []
        for top in range(num_steps - 1, -1, -self.jump):
            stretch = list(range(top, max(top - self.jump, -1), -1))
            order += stretch * self.times
        evaluated = np.asarray(order, np.int64)
        return evaluated, np.append(evaluated[1:], -1)


def repaint(
    process: Process,
    model_fn: ModelFn,
    cond: PyTree,
    sampler: Sampler,
    noise: NoiseSource,
    *,
    known: Float[Array, " b *dims"],
    is_known: Bool[Array, " #b *#dims"],
    resampling: Resampling = Resampling(),
    x_T: Float[Array, " b *dims"] | None = None,
    threshold: Threshold = UNIT_THRESHOLD,
) -> Float[Array, " b *dims"]:
    """Sample an x_0 that equals `known` where `is_known` says so. Pure; arguments as of `sample`.

    Args:
        known: clean values; what they are elsewhere has no effect.
        is_known: broadcasts against `known`.
        noise: its steps are numbered three to a network evaluation.

    Raises:
        ValueError: the sampler has more steps than the process, is not for such a process, or carries more than x
            from step to step, which going back would mix up; or `noise` or `x_T` does not fit `known`.
    """
    if not carries_only_x(sampler):
        raise ValueError(f"RePaint takes samplers of single steps, DDPM or DDIM; got {type(sampler).__name__}")
    shape = known.shape
    process = process.respace(sampler.steps)
    evaluated, after = resampling.rows(sampler.steps)
    noise.check(shape, DRAWS * len(evaluated))
    if x_T is None:
        x_T = initial(process, noise, shape)
    elif x_T.shape != shape:
        raise ValueError(f"x_T has shape {x_T.shape}, but the known image has shape {shape}")
    columns = {name: column[evaluated] for name, column in sampler.coefficients(process).items()}
    columns |= _noising(process, evaluated, after)
    table = {name: column.astype(np.float32) for name, column in columns.items()}

    def step(x_t: Array, scanned):
        i, index, row = scanned
        t = jnp.broadcast_to(index, shape[:1])
        prediction, variance_channels = process.split(model_fn(*process.network_inputs(x_t, t), cond))
        x_0 = threshold.apply(process.to_x0(prediction, x_t, t))
        own, around, again = (noise.step(DRAWS * i + draw, shape) for draw in range(DRAWS))
        x_prev = sampler.update(sampler.start(x_t), Denoised(x_0, variance_channels), row, own).x
        x_prev = jnp.where(is_known, row["signal"] * known + row["sigma"] * around, x_prev)
        return row["kept"] * x_prev + row["added"] * again, None

    numbers = np.arange(len(evaluated), dtype=np.int32)
    x_0, _ = jax.lax.scan(step, x_T.astype(jnp.float32), (numbers, evaluated.astype(np.int32), table))
    return jnp.where(is_known, known, x_0)


def _noising(process: Process, evaluated: np.ndarray, after: np.ndarray) -> dict[str, Float64[np.ndarray, " n"]]:
    """Return the coefficients of equations (1) and (2)."""
    kept, added = process.transition(evaluated - 1, after)
    return {
        "signal": below(process.signal, 1.0)[evaluated],
        "sigma": below(process.sigma, 0.0)[evaluated],
        "kept": kept,
        "added": np.sqrt(added),
    }
