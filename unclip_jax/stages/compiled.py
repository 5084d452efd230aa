"""The one compiled entry of every operation on a stage, on one device or on a mesh.

A program depends on the operation, the stage, its options and shapes alone, so another prompt, seed or image never
compiles again. On a mesh every replica of the axis `data` works on its own rows with the weights as they lie.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from unclip_jax.diffusion.noise import KeyNoise, NoiseSource
from unclip_jax.parallel.layout import data_parallel
from unclip_jax.stages.encoders import Arrays
from unclip_jax.stages.stage import Stage, Weights

Operation = Callable[..., Array]
"""(stage, options, weights, rows, noise) -> array [b ...]; see `unclip_jax.stages.operations`."""


@functools.partial(jax.jit, static_argnames=("operation", "stage", "options", "mesh"))
def run(
    operation: Operation,
    stage: Stage,
    options: Hashable,
    weights: Weights,
    rows: Arrays,
    noise: NoiseSource | None,
    *,
    mesh: Mesh | None = None,
) -> Array:
    """Run `operation(stage, options, weights, rows, noise)`, compiled once for each of the first two, options and
    shapes.

    Args:
        weights: whole on one device, or as `unclip_jax.systems.placing` lays them on `mesh`.
        rows: named arrays [b ...]; None where an optional one is absent.
        noise: of these rows; on a mesh only `KeyNoise`, of which a replica takes its own rows' share.

    Raises:
        ValueError: for replayed noise on a mesh.
    """
    if mesh is None:
        return operation(stage, options, weights, rows, noise)
    if noise is None:
        return data_parallel(lambda whole, own: operation(stage, options, whole, own, None), mesh, 1)(weights, rows)
    if not isinstance(noise, KeyNoise):
        raise ValueError(f"{type(noise).__name__} on a mesh; a replica draws its own noise: give KeyNoise")

    def replica(key: Array, whole: Any, own: Any, indices: Array) -> Array:
        return operation(stage, options, whole, own, KeyNoise(key=key, indices=indices))

    return data_parallel(replica, mesh, 2)(noise.key, weights, rows, noise.indices)


def num_compilations() -> int:
    """Return how many programs this process has compiled through `run`; for tests."""
    return run._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
