"""The one compiled entry of every operation on a stage, on one device or on a mesh.

A program depends on the operation, the stage, its options and shapes alone, so another prompt, seed or image never
compiles again. On a mesh every replica of the axis `data` works on its own rows with the weights as they lie.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from unclip_jax.diffusion.noise import KeyNoise, NoiseSource
from unclip_jax.parallel.layout import data_parallel
from unclip_jax.stages.encoders import Arrays
from unclip_jax.stages.stage import Stage, Weights

Operation = Callable[..., Array]
"""(stage, options, weights, rows, noise) -> array [b ...]: `Stage.sample`, and `unclip_jax.stages.operations`."""


_programs: dict[tuple[Operation, Mesh | None], Any] = {}


def program(operation: Operation, mesh: Mesh | None = None) -> jax.stages.Wrapped:
    """Return `operation`, to be called as it is; compiled once for each stage, options and shapes.

    On a mesh its weights lie as `unclip_jax.systems.placing` has them, and its noise is `KeyNoise`, of which a replica
    takes its own rows' share: calling it with replayed noise raises ValueError.
    """
    if (operation, mesh) not in _programs:
        run = operation if mesh is None else _by_replicas(operation, mesh)
        _programs[operation, mesh] = jax.jit(run, static_argnums=(0, 1))
    return _programs[operation, mesh]


def num_compilations() -> int:
    """Return how many programs this process has compiled; for tests."""
    return sum(each._cache_size() for each in _programs.values())


def _by_replicas(operation: Operation, mesh: Mesh) -> Operation:
    def run(
        stage: Stage, options: Hashable, weights: Weights, rows: Arrays, noise: NoiseSource | None
    ) -> Float[Array, "b ..."]:
        if noise is None:
            own = functools.partial(operation, stage, options, noise=None)
            return data_parallel(own, mesh, 1)(weights, rows)
        if not isinstance(noise, KeyNoise):
            raise ValueError(f"{type(noise).__name__} on a mesh; a replica draws its own noise: give KeyNoise")

        def replica(key: Array, weights: Weights, rows: Arrays, indices: Array) -> Array:
            return operation(stage, options, weights, rows, KeyNoise(key=key, indices=indices))

        return data_parallel(replica, mesh, 2)(noise.key, weights, rows, noise.indices)

    return run
