"""The layout of a batch over devices, for code inside a compiled step.

A step is traced either for the whole global batch on a mesh (`jit`), where the compiler moves the data, or for the
rows of one device (`pmap`), where the program does. These functions make both the same mathematics. Outside of a step,
and on one device, they do nothing.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
PMAP_AXIS = "rows"

T = TypeVar("T")


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Set the mesh that `shard_batch` uses in functions that are traced inside; as a decorator, in the function."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def shard_batch(x: Array) -> Array:
    """Lay out `x` [b ...] with its rows over `BATCH_AXES` and every other dimension whole.

    Between two layers this leaves one way to multiply with a sharded kernel: gather the kernel, not the activations.
    Without it the compiler is free to gather activations of the whole batch, and does.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES:
        return x
    # Under shard_map the batch is already split over `data`.
    axes = tuple(axis for axis in BATCH_AXES if axis not in mesh.manual_axes)
    if all(mesh.shape[axis] == 1 for axis in (*axes, "tensor")) or len(x) % math.prod(mesh.shape[a] for a in axes):
        return x
    return lax.with_sharding_constraint(x, P(axes, *[None] * (x.ndim - 1)))


def data_parallel(function: Callable[..., Array], mesh: Mesh, num_replicated: int) -> Callable[..., Array]:
    """Return `function(*arguments)`, run by every replica of the axis `data` on its own rows.

    The first `num_replicated` arguments are the same everywhere; of the others dimension 0 is split, and that of the
    result is joined. Each replica is compiled for its own number of rows, so what a row becomes does not depend on how
    many replicas there are; over the other axes the compiler divides each replica as the arguments lie.
    """

    def run(*arguments):
        specs = (P(),) * num_replicated + (P("data"),) * (len(arguments) - num_replicated)
        return jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=P("data"), axis_names={"data"}, check_vma=False
        )(*arguments)

    return run


def _pmapped() -> bool:
    return PMAP_AXIS in jax.sharding.get_abstract_mesh().axis_names


def global_rows(count: int) -> Int[Array, " b"]:
    """Return the places in the global batch of the `count` rows that this trace holds."""
    first = lax.axis_index(PMAP_AXIS) * count if _pmapped() else 0
    return first + jnp.arange(count)


def rows_per_device(count: int) -> int:
    """Return how many of the `count` rows that this trace holds lie on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES) if mesh.axis_names == AXES else 1
    return count // parts if count % parts == 0 else 1


def num_batch_shards() -> int:
    """Return how many traces such as this one share the global batch."""
    return lax.axis_size(PMAP_AXIS) if _pmapped() else 1


def sum_over_batch(tree: T) -> T:
    """Sum over the traces that share the global batch."""
    return lax.psum(tree, PMAP_AXIS) if _pmapped() else tree


def all_gather_batch(x: Array) -> Array:
    """Gather the rows of the global batch, in order, of an array [b ...] that holds this trace's."""
    return lax.all_gather(x, PMAP_AXIS, tiled=True) if _pmapped() else x
