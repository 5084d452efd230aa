"""Finding layouts that fit: what a person would try, in the order in which it costs least.

1. the smallest `fsdp` that leaves half of the memory free of state      exact, from shapes, nothing is compiled
2. recomputing every block in the backward pass                          about a third more FLOPs
3. microbatches, as many as the measured temporaries need                the kernels are gathered again for each
4. a larger `fsdp`                                                       more gathering
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.models.base import Network
from unclip_jax.nn.remat import Remat
from unclip_jax.parallel.layout import BATCH_AXES
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.planning.chips import Slice
from unclip_jax.planning.plan import Plan, training_step
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.stage_configs import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a search may change."""

    mesh: MeshSpec
    accumulate: int
    remat: Remat


Attempt = Callable[[Layout], Plan]


def fit(
    start: Layout, attempt: Attempt, state_bytes: Callable[[MeshSpec], float], slice_: Slice
) -> Iterator[tuple[Layout, Plan]]:
    """Yield layouts and their plans, as they are made; the last one fits.

    Raises UserError where nothing does.
    """
    sizes = _fsdp_sizes(start.mesh, state_bytes, slice_)
    for mesh in sizes:
        layout = dataclasses.replace(start, mesh=mesh)
        while True:
            plan = attempt(layout)
            yield layout, plan
            if plan.memory.fits:
                return
            following = _smaller(layout, plan)
            if following is None:
                break
            layout = following
    raise UserError(f"nothing that was tried fits {slice_.name}; take a larger slice, or a smaller batch")


def _smaller(layout: Layout, plan: Plan) -> Layout | None:
    if layout.remat is not True:
        return dataclasses.replace(layout, remat=True)
    shares = math.prod(plan.mesh[axis] for axis in BATCH_AXES)
    most = plan.batch_size // shares
    if layout.accumulate >= most:
        return None
    # What does not fit is taken to grow with the rows that are in flight.
    wanted = layout.accumulate * 2 ** max(1, math.ceil(math.log2(plan.memory.total / plan.memory.limit)))
    counts = [count for count in range(layout.accumulate + 1, most + 1) if most % count == 0]
    return dataclasses.replace(layout, accumulate=next((count for count in counts if count >= wanted), counts[-1]))


def _fsdp_sizes(mesh: MeshSpec, state_bytes: Callable[[MeshSpec], float], slice_: Slice) -> list[MeshSpec]:
    """Return meshes with the first `fsdp` that leaves half of the memory to activations, and those with more of it."""
    tensor = max(mesh.tensor, 1)
    limit, found = slice_.chip.memory / slice_.chip.cores / 2, []
    for fsdp in (size for size in range(1, len(slice_.devices) + 1) if len(slice_.devices) % (size * tensor) == 0):
        candidate = MeshSpec(data=-1, fsdp=fsdp, tensor=tensor, slices=mesh.slices)
        try:
            if state_bytes(candidate) <= limit:
                found.append(candidate)
        except UserError:  # a size that does not divide some parameter
            continue
    if not found:
        raise UserError(f"the state alone does not fit {slice_.name}, however it is split; take a larger slice")
    return found


def state_bytes(
    config: Config, encoders: Mapping[str, Network], optim: OptimConfig, slice_: Slice, mesh: MeshSpec
) -> float:
    """Return the bytes on one device of everything that outlives a step."""
    _, (state, frozen, _) = training_step(config, encoders, optim, make_mesh(mesh, slice_.devices))
    leaves = jax.tree.leaves((state, frozen))
    return float(sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves))
