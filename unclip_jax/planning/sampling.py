"""The needs of sampling a batch on a slice, stage by stage: the programs that sampling runs, compiled."""

import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from unclip_jax.models.base import Network
from unclip_jax.models.parameters import parameter_count
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import batch_sharding, check_batch
from unclip_jax.planning.chips import Slice
from unclip_jax.planning.flops import flops_of
from unclip_jax.planning.plan import EFFORT, Plan, compile_for, with_traffic
from unclip_jax.stages import compiled
from unclip_jax.stages.settings import Options, SamplingSettings
from unclip_jax.stages.stage import Stage, array_shape
from unclip_jax.systems.placing import abstract_weights


def plan_sampling(
    stage: Stage,
    settings: SamplingSettings,
    encoders: Mapping[str, Network],
    slice_: Slice,
    mesh_spec: MeshSpec,
    num_images: int,
    *,
    effort: float = EFFORT,
) -> Plan:
    """Compile the sampling program of a stage for `num_images` rows on `slice_`.

    Raises UserError for a mesh that does not fit the slice, or the images.
    """
    mesh = make_mesh(mesh_spec, slice_.devices)
    check_batch(num_images, mesh.shape["data"] * mesh.shape["fsdp"])
    weights, where = abstract_weights(stage, dict(encoders), mesh), batch_sharding(mesh)
    rows = {}
    for name in stage.reads:
        row = array_shape(name, encoders)
        rows[name] = jax.ShapeDtypeStruct((num_images, *row.shape), row.dtype, sharding=where)
    noise = jax.eval_shape(lambda: stage.noise(jax.random.key(0), jnp.arange(num_images), settings))
    program = compiled.program(type(stage).sample, mesh)
    traced = program.trace(stage, Options(settings=settings), weights, rows, noise)
    started = time.monotonic()
    compiled_program, memory = compile_for(traced.lower(), slice_.chip, effort)
    flops = flops_of(traced.jaxpr)
    plan = Plan(
        topology=slice_.name,
        num_chips=slice_.num_chips,
        mesh=dict(mesh.shape),
        batch_size=num_images,
        parameters=parameter_count(weights.params),
        model_flops=flops,
        hardware_flops=flops,
        memory=memory,
        compile_seconds=time.monotonic() - started,
    )
    return plan if compiled_program is None else with_traffic(plan, compiled_program, slice_)
