"""The sampling loop: one `lax.scan` over a sampler's table of rows, from the noisiest to the data.

(1)  x_0 = threshold(to_x0(model_fn(x_t, t, cond), x_t))
(2)  x_prev = update(x_t, x_0, x_0 of the step before, noise)

The table is computed in float64 and rounded to float32 once; x_t and all arithmetic are float32, whatever the
network's dtype.
"""

from typing import Literal, NamedTuple, Protocol, overload, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from unclip_jax.diffusion.gaussian import Process
from unclip_jax.diffusion.guidance import UNIT_THRESHOLD, ModelFn, Threshold
from unclip_jax.diffusion.noise import NoiseSource


@runtime_checkable
class Sampler(Protocol):
    """An algorithm: a hashable description, a table of coefficients and the step that uses one row of it."""

    @property
    def steps(self) -> int:
        """Network evaluations."""
        ...

    @property
    def is_stochastic(self) -> bool:
        """Whether steps draw noise; if not, `update` gets zeros."""
        ...

    @property
    def is_multistep(self) -> bool:
        """Whether `update` gets x_0 of the step before, zeros in the first; if not, none is kept."""
        ...

    def rows(self, process: Process) -> dict[str, Float[np.ndarray, " s"]]:
        """float64 coefficients of each row of `process`, respaced to `steps` rows; lowest noise first."""
        ...

    def update(
        self,
        row: dict[str, Float[Array, ""]],
        x_t: Float[Array, " b *dims"],
        x_0: Float[Array, " b *dims"],
        x_0_before: Float[Array, " b *dims"] | None,
        variance_channels: Float[Array, " b *dims"] | None,
        noise: Float[Array, " b *dims"],
    ) -> Float[Array, " b *dims"]:
        """x_prev, from one row of the table as float32 scalars."""
        ...


class Trajectory(NamedTuple):
    """What each step saw and predicted, in sampling order: [S b ...]. x_t[0] is x_T."""

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
    """Draws x_0. Pure, to be jitted by the caller with `cond` and `noise` (and `x_T`) as arguments.

    Args:
        process: respaced to the sampler's steps evenly; for another spacing, give it respaced.
        model_fn: called with x_t float32, the row's training step int32 [b], and `cond` as it is. To guide,
            give what `Guidance.wrap` returns.
        shape: of the sample, [b ...].
        x_T: start, instead of the noise source's own.
        trajectory: also return every step's x_t and thresholded x_0.

    Raises:
        ValueError: the sampler has more steps than the process, or `noise` or `x_T` does not fit `shape`.
    """
    process = process.respace(sampler.steps)
    noise.check(shape, sampler.steps if sampler.is_stochastic else 0)
    if x_T is None:
        x_T = noise.initial(shape)
    elif x_T.shape != shape:
        raise ValueError(f"x_T has shape {x_T.shape}, but the sample has shape {shape}")

    def step(carry: tuple[Array, Array | None], scanned):
        x_t, x_0_before = carry
        i, index, timestep, row = scanned
        output = model_fn(x_t, jnp.broadcast_to(timestep, shape[:1]), cond)
        prediction, variance_channels = process.split(output.astype(jnp.float32))
        x_0 = threshold.apply(process.to_x0(prediction, x_t, jnp.broadcast_to(index, shape[:1])))
        z = noise.step(i, shape) if sampler.is_stochastic else jnp.zeros(shape, jnp.float32)
        x_prev = sampler.update(row, x_t, x_0, x_0_before, variance_channels, z)
        return (x_prev, x_0 if sampler.is_multistep else None), Trajectory(x_t, x_0) if trajectory else None

    ascending = np.arange(sampler.steps, dtype=np.int32)
    timesteps = process.schedule.timesteps[::-1].astype(np.int32)
    table = {name: column[::-1].astype(np.float32) for name, column in sampler.rows(process).items()}
    start = x_T.astype(jnp.float32), jnp.zeros(shape, jnp.float32) if sampler.is_multistep else None
    (x_0, _), seen = jax.lax.scan(step, start, (ascending, ascending[::-1], timesteps, table))
    return x_0 if seen is None else (x_0, seen)
