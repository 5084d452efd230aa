"""One compiled train step, by either of two backends, and the batches that it takes.

`step_fn(state, frozen, batch) -> (state, metrics)`. With "jit" the state and `frozen` lie as their shardings say,
dimension 0 of every batch leaf is split over the mesh axes `data` and `fsdp`, and the compiler inserts what has to
move. With "pmap" every device holds a whole copy of the state and its own rows, and the step itself sums over devices
(`unclip_jax.parallel.layout`). Either way the state is donated, the metrics are replicated, and the numbers are equal.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.parallel.layout import BATCH_AXES, PMAP_AXIS, on_mesh

Backend = Literal["jit", "pmap"]


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """`run(state, frozen, put(batch))`, batch being this process's rows; it compiles at the first call."""

    run: Callable[..., Any]
    put: Callable[[PyTree], PyTree]


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a whole copy on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: dimension 0 over `BATCH_AXES`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def compile_step(
    step_fn: Callable, mesh: Mesh, state_shardings: PyTree, frozen_shardings: PyTree = None, backend: Backend = "jit"
) -> CompiledStep:
    """Compile `step_fn` for `mesh`; `frozen_shardings` are replicated by default.

    Raises UserError for a mesh that splits parameters where the backend is pmap.
    """
    if backend == "pmap":
        return _pmap_step(step_fn, mesh)
    run = jit_step(step_fn, mesh, state_shardings, frozen_shardings)
    return CompiledStep(run, lambda batch: put_batch(batch, mesh))


def jit_step(
    step_fn: Callable, mesh: Mesh, state_shardings: PyTree, frozen_shardings: PyTree = None
) -> jax.stages.Wrapped:
    """Return the step under `jax.jit`, to be called, or lowered for devices that are not there."""

    whole = replicated(mesh)
    return jax.jit(
        on_mesh(mesh)(step_fn),
        in_shardings=(state_shardings, whole if frozen_shardings is None else frozen_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )


def jit_rows(
    function: Callable, mesh: Mesh, param_shardings: PyTree, frozen_shardings: PyTree = None
) -> jax.stages.Wrapped:
    """Return `function(params, frozen, batch, first)` under `jax.jit`: the batch split as a step's, all else and the
    results whole on every device."""
    whole = replicated(mesh)
    frozen = whole if frozen_shardings is None else frozen_shardings
    shardings = (param_shardings, frozen, batch_sharding(mesh), whole)
    return jax.jit(on_mesh(mesh)(function), in_shardings=shardings, out_shardings=whole)


def put_batch(batch: PyTree[np.ndarray], mesh: Mesh) -> PyTree[jax.Array]:
    """Make global arrays of this process's rows (leaves `[b ...]`); processes stack in order of index.

    Raises UserError when the global batch does not divide over the devices that split it.
    """
    sharding = batch_sharding(mesh)
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    check_batch(len(jax.tree.leaves(batch)[0]) * jax.process_count(), parts)
    return jax.tree.map(lambda local: jax.make_array_from_process_local_data(sharding, local), batch)


def check_batch(rows: int, parts: int) -> None:
    """Raise UserError where `parts` devices cannot share a global batch of `rows`."""
    if rows % parts:
        near = sorted({max(rows // parts, 1) * parts, (rows // parts + 1) * parts})
        raise UserError(
            f"a batch of {rows} does not divide over {parts} devices; use a multiple of {parts}, "
            f"such as {' or '.join(map(str, near))}"
        )


def _pmap_step(step_fn: Callable, mesh: Mesh) -> CompiledStep:
    split = {axis: size for axis, size in mesh.shape.items() if axis != "data" and size > 1}
    if split:
        axis, size = next(iter(split.items()))
        raise UserError(
            f"the pmap backend keeps a whole copy on every device, but the mesh has {axis}={size}; "
            f"set run.mesh.{axis} to 1, or run.backend to jit"
        )
    if jax.process_count() > 1:
        raise UserError("the pmap backend runs in one process; set run.backend to jit")
    devices = mesh.devices.flatten().tolist()
    run = jax.pmap(
        step_fn,
        axis_name=PMAP_AXIS,
        in_axes=(None, None, 0),
        out_axes=(None, None),  # pyright: ignore[reportArgumentType]
        devices=devices,
        donate_argnums=0,
    )

    def put(batch: PyTree) -> PyTree:
        check_batch(len(jax.tree.leaves(batch)[0]), len(devices))
        return jax.tree.map(lambda rows: rows.reshape(len(devices), -1, *rows.shape[1:]), batch)

    return CompiledStep(run, put)
