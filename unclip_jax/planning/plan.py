"""Compiling a run's own train step for chips that are not here, and what that says about memory and time.

Per step and device, with F the FLOPs counted in the traced step (recomputation included), M the bytes that the compiled
program moves through memory and W those it sends to other chips,

(1) t = max(F / peak, M / bandwidth, W / (links / 2))         all of it overlaps; half of a chip's links are in use
(2) MFU = F_model / (t * peak),  F_model counted without recomputation

(1) is a bound, no forecast. Time and money are at an MFU that is assumed, unless (1) is slower than that.
"""

import dataclasses
import re
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from unclip_jax.models.base import Network
from unclip_jax.models.parameters import parameter_count
from unclip_jax.parallel.layout import BATCH_AXES
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import batch_sharding, check_batch, jit_step
from unclip_jax.planning.chips import Chip, Slice
from unclip_jax.planning.flops import count_flops
from unclip_jax.planning.hlo import Collective, Program
from unclip_jax.stages.encoders import frozen_shardings
from unclip_jax.training.adapting import trained_stage
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.stage_configs import Config
from unclip_jax.training.state import abstract_state, state_shardings
from unclip_jax.training.step import StepFn, make_step

EFFORT = -1.0
"""The compiler's search for fast tilings, from -1 to 1. On two cores the least took a tenth of the time of the default
for a pair of convolutions; a step of a decoder with two levels then wanted 5 % more memory than with a search
of four times that length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device; only `total` is known of a program that did not fit."""

    total: float
    limit: float
    arguments: float | None = None
    temporaries: float | None = None
    outputs: float | None = None
    code: float | None = None

    @property
    def fits(self) -> bool:
        """Whether a chip has that much."""
        return self.total <= self.limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What one step sends between chips, per device, by kind of collective."""

    count: int
    bytes: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a step by equation (1), and equation (2)."""

    compute: float
    memory: float
    links: float
    mfu: float

    @property
    def step(self) -> float:
        """The largest of the three."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """Which one that is."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What compiling a step for a slice has shown."""

    topology: str
    num_chips: int
    mesh: dict[str, int]
    batch_size: int
    parameters: int
    model_flops: float
    hardware_flops: float
    memory: Memory
    compile_seconds: float
    traffic: dict[str, Traffic] | None = None
    times: Times | None = None
    collectives: list[Collective] = dataclasses.field(default_factory=list, repr=False)


def plan_training(
    config: Config,
    without_remat: Config,
    encoders: Mapping[str, Network],
    optim: OptimConfig,
    slice_: Slice,
    mesh_spec: MeshSpec,
    *,
    effort: float = EFFORT,
) -> Plan:
    """Compile the train step of a run for the devices of `slice_`.

    Args:
        config: of the run, fitted to its encoders.
        without_remat: the same without recomputation, for F_model.
        encoders: the frozen networks of the run, by name.
        optim: the run's, or another.

    Raises UserError for a mesh that does not fit the slice or the parameters, and a batch that does not fit the mesh.
    """
    mesh = make_mesh(mesh_spec, slice_.devices)
    check_batch(config.data.batch_size // optim.accumulate, _num_batch_shards(mesh))
    step, arguments = training_step(config, encoders, optim, mesh)
    started = time.monotonic()
    compiled, memory = compile_for(step.lower(*arguments), slice_.chip, effort)
    seconds = time.monotonic() - started
    plan = Plan(
        topology=slice_.name,
        num_chips=slice_.num_chips,
        mesh=dict(mesh.shape),
        batch_size=config.data.batch_size,
        parameters=parameter_count(arguments[0].params),
        memory=memory,
        compile_seconds=seconds,
        model_flops=count_flops(_step(without_remat, optim), *arguments),
        hardware_flops=count_flops(_step(config, optim), *arguments),
    )
    return plan if compiled is None else with_traffic(plan, compiled, slice_)


def with_traffic(plan: Plan, compiled: jax.stages.Compiled, slice_: Slice) -> Plan:
    """Return `plan` with the traffic that the compiled program's text shows."""
    program = Program(compiled.as_text() or "")
    collectives = program.collectives()
    return dataclasses.replace(
        plan,
        collectives=collectives,
        traffic=sum_by_kind(collectives),
        times=roofline(plan, program.memory_bytes(), collectives, slice_),
    )


def training_step(
    config: Config, encoders: Mapping[str, Network], optim: OptimConfig, mesh: Mesh
) -> tuple[jax.stages.Wrapped, tuple[PyTree, PyTree, PyTree]]:
    """Return the jitted step, and its state, frozen parameters and batch as shapes with shardings."""
    stage = trained_stage(config)
    state = abstract_state(stage, optim, mesh)
    shardings = state_shardings(state)
    shapes = stage.abstract_frozen(encoders)
    where, rows = frozen_shardings(shapes, mesh), batch_sharding(mesh)
    frozen = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, where
    )
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in config.batch(encoders).arrays().items()
    }
    return jit_step(_step(config, optim), mesh, shardings, where), (state, frozen, batch)


def compile_for(lowered: jax.stages.Lowered, chip: Chip, effort: float) -> tuple[jax.stages.Compiled | None, Memory]:
    """Compile the program, or return None where it needs more than the chip has, and return its memory."""
    try:
        options = {"exec_time_optimization_effort": effort}
        compiled = lowered.compile(compiler_options=options)  # pyright: ignore[reportArgumentType]
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"Used ([\d.]+[KMGT]) of|memory required .* \(([\d.]+[KMGT])\) exceeds", str(error))
        if needed is None:
            raise
        size = needed[1] or needed[2]
        return None, Memory(total=float(size[:-1]) * _UNITS[size[-1]], limit=chip.memory / chip.cores)
    sizes = compiled.memory_analysis()
    assert sizes is not None
    # Outputs in the place of donated arguments take no room of their own.
    parts = {
        "arguments": float(sizes.argument_size_in_bytes),
        "temporaries": float(sizes.temp_size_in_bytes),
        "outputs": float(sizes.output_size_in_bytes - sizes.alias_size_in_bytes),
        "code": float(sizes.generated_code_size_in_bytes),
    }
    return compiled, Memory(total=sum(parts.values()), limit=chip.memory / chip.cores, **parts)


_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


def roofline(plan: Plan, memory_bytes: float, collectives: list[Collective], slice_: Slice) -> Times:
    """Compute equations (1) and (2)."""
    chip = slice_.chip
    compute = plan.hardware_flops / (slice_.num_chips * chip.flops)
    memory = memory_bytes / (chip.bandwidth / chip.cores)
    links = sum(each.wire_bytes for each in collectives) / (chip.links / chip.cores / 2)
    step = max(compute, memory, links)
    mfu = plan.model_flops / (step * slice_.num_chips * chip.flops)
    return Times(compute=compute, memory=memory, links=links, mfu=mfu)


def sum_by_kind(collectives: list[Collective]) -> dict[str, Traffic]:
    """Sum counts and wire bytes by kind, every execution of a loop's body included."""
    kinds = {each.kind: [other for other in collectives if other.kind == each.kind] for each in collectives}
    return {
        kind: Traffic(count=sum(each.times for each in some), bytes=sum(each.wire_bytes for each in some))
        for kind, some in kinds.items()
    }


def _step(config: Config, optim: OptimConfig) -> StepFn:
    return make_step(trained_stage(config), optim, total_steps=1, seed=0)


def _num_batch_shards(mesh: Mesh) -> int:
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
