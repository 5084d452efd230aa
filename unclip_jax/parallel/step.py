"""One compiled train step on a mesh, and the batches that it takes.

`step_fn(state, frozen, batch) -> (state, metrics)`: the state lies as its shardings say and is donated,
`frozen` and the metrics are replicated, and dimension 0 of every batch leaf is split over the mesh axes
`data` and `fsdp`.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from unclip_jax.errors import UserError
from unclip_jax.parallel.mesh import BATCH_AXES


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a whole copy on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: dimension 0 over `BATCH_AXES`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def compile_step(step_fn: Callable, mesh: Mesh, state_shardings: PyTree) -> Callable:
    """`step_fn` under `jax.jit` with the shardings above; it compiles at the first call."""
    whole = replicated(mesh)
    return jax.jit(
        step_fn,
        in_shardings=(state_shardings, whole, batch_sharding(mesh)),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )


def put_batch(batch: PyTree[np.ndarray], mesh: Mesh) -> PyTree[jax.Array]:
    """Makes global arrays of this process's rows (leaves `[b ...]`); processes stack in order of index.

    Raises UserError when the global batch does not divide over the devices that split it.
    """
    sharding = batch_sharding(mesh)
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    rows = len(jax.tree.leaves(batch)[0]) * jax.process_count()
    if rows % parts:
        raise UserError(f"a batch of {rows} does not divide over {parts} devices; use a multiple of {parts}")
    return jax.tree.map(lambda local: jax.make_array_from_process_local_data(sharding, local), batch)
