"""The sampling loop: one `lax.scan` over a sampler's table of coefficients, from the noisiest row to the data.

(1)  x_0 = threshold(to_x0(model_fn(scale_input(x_t), time, cond), x_t)),  x_t the x that the sampler carries
(2)  carry <- update(carry, x_0, coefficients, noise)

The table is computed in float64 and rounded to float32 once; x_t and all arithmetic are float32, whatever the
network's dtype.
"""

from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from unclip_jax.diffusion.guidance import UNIT_THRESHOLD, Threshold
from unclip_jax.diffusion.noise import NoiseSource
from unclip_jax.diffusion.process import ModelFn, Process
from unclip_jax.diffusion.samplers.sampler import Carry, Denoised, Sampler


class Trajectory(NamedTuple):
    """What each evaluation saw and predicted, in sampling order: [S b ...]. x_t[0] is x_T."""

    x_t: Float[Array, " s b *dims"]
    x_0: Float[Array, " s b *dims"]


@overload
def sample(
    process: Process,
    model_fn: ModelFn,
    cond: PyTree,
    sampler: Sampler,
    noise: NoiseSource,
    *,
    shape: tuple[int, ...],
    x_T: Float[Array, " b *dims"] | None = None,
    threshold: Threshold = UNIT_THRESHOLD,
    trajectory: Literal[False] = False,
) -> Float[Array, " b *dims"]: ...


@overload
def sample(
    process: Process,
    model_fn: ModelFn,
    cond: PyTree,
    sampler: Sampler,
    noise: NoiseSource,
    *,
    shape: tuple[int, ...],
    x_T: Float[Array, " b *dims"] | None = None,
    threshold: Threshold = UNIT_THRESHOLD,
    trajectory: Literal[True],
) -> tuple[Float[Array, " b *dims"], Trajectory]: ...


def sample(
    process: Process,
    model_fn: ModelFn,
    cond: PyTree,
    sampler: Sampler,
    noise: NoiseSource,
    *,
    shape: tuple[int, ...],
    x_T: Float[Array, " b *dims"] | None = None,
    threshold: Threshold = UNIT_THRESHOLD,
    trajectory: bool = False,
) -> Float[Array, " b *dims"] | tuple[Float[Array, " b *dims"], Trajectory]:
    """Sample x_0. Pure, to be jitted by the caller with `cond` and `noise` (and `x_T`) as arguments.

    Args:
        process: respaced to the sampler's steps evenly; for another spacing, give it respaced.
        model_fn: called with x_t (or what `Process.scale_input` makes of it) and the row's time, float32, and `cond`
            as it is. To guide, give what `Guidance.wrap` returns.
        shape: of the sample, [b ...].
        x_T: start, instead of the noise source's own; its deviation is `process.initial_scale`.
        trajectory: also return every evaluation's x_t and thresholded x_0.

    Raises:
        ValueError: the sampler has more steps than the process or is not for such a process, or `noise` or `x_T` does
            not fit `shape`.
    """
    process = process.respace(sampler.steps)
    noise.check(shape, sampler.evaluations if sampler.is_stochastic else 0)
    if x_T is None:
        x_T = initial(process, noise, shape)
    elif x_T.shape != shape:
        raise ValueError(f"x_T has shape {x_T.shape}, but the sample has shape {shape}")

    def step(carry: Carry, scanned):
        i, index, row = scanned
        x_t, t = carry.x, jnp.broadcast_to(index, shape[:1])
        prediction, variance_channels = process.split(model_fn(*process.network_inputs(x_t, t), cond))
        x_0 = threshold.apply(process.to_x0(prediction, x_t, t))
        z = noise.step(i, shape) if sampler.is_stochastic else jnp.zeros(shape, jnp.float32)
        carry = sampler.update(carry, Denoised(x_0, variance_channels), row, z)
        return carry, Trajectory(x_t, x_0) if trajectory else None

    numbers = np.arange(sampler.evaluations, dtype=np.int32)
    evaluated = sampler.evaluated[::-1].astype(np.int32)
    table = {name: column[::-1].astype(np.float32) for name, column in sampler.coefficients(process).items()}
    carry, seen = jax.lax.scan(step, sampler.start(x_T.astype(jnp.float32)), (numbers, evaluated, table))
    return carry.x if seen is None else (carry.x, seen)


def initial(process: Process, noise: NoiseSource, shape: tuple[int, ...]) -> Float[Array, " b *dims"]:
    """Return the noise source's x_T, scaled to the deviation that the process starts from."""
    x_T = noise.initial(shape)
    return x_T if process.initial_scale == 1 else jnp.float32(process.initial_scale) * x_T
