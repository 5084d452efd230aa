"""What drawing a batch of captions takes on a slice, stage by stage: the programs that sampling runs, compiled."""

import dataclasses
import time
from typing import Any, cast

import jax
import numpy as np

from unclip_jax.bundle.parts import Bundle, Kind, Part
from unclip_jax.cascade import trace_stage
from unclip_jax.models.base import parameter_count
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import EmbeddingStats
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import check_batch, replicated
from unclip_jax.planning.chips import Slice
from unclip_jax.planning.flops import flops_of
from unclip_jax.planning.plan import EFFORT, Plan, compile_for, with_traffic
from unclip_jax.sharding import part_shardings
from unclip_jax.stages.settings import StageSettings


def plan_sampling(
    kind: Kind,
    config: Any,
    clip_spec: CLIPSpec,
    slice_: Slice,
    mesh_spec: MeshSpec,
    images: int,
    *,
    effort: float = EFFORT,
) -> Plan:
    """Compiles the sampling program of the stage that `config` trains, for `images` captions on `slice_`.

    Raises UserError for a mesh that does not fit the slice, or the images.
    """
    mesh = make_mesh(mesh_spec, slice_.devices)
    check_batch(images, mesh.shape["data"] * mesh.shape["fsdp"])
    low_res = config.model.image_size // config.low_res.scale if kind == "upsampler" else None
    name = "upsampler_0" if kind == "upsampler" else kind
    parts = {name: Part(kind=kind, spec=config.model, process=config.process, low_res_size=low_res)}
    if kind != "upsampler":
        parts["clip"] = Part(kind="clip", spec=clip_spec)

    def on_mesh(part: Part) -> Part:
        shapes = dataclasses.replace(part, params=part.abstract_params())
        params = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            shapes.params,
            part_shardings(shapes, mesh),
        )
        return dataclasses.replace(part, params=params)

    vector = jax.ShapeDtypeStruct((clip_spec.embed_dim,), np.float32, sharding=replicated(mesh))
    stats = EmbeddingStats(mean=vector, std=vector)
    bundle = Bundle(name="plan", parts={each: on_mesh(part) for each, part in parts.items()}, stats=stats)
    how = cast(StageSettings, config.sampling)
    traced = trace_stage(bundle, name, images, how)
    started = time.monotonic()
    compiled, memory = compile_for(traced.lower(), slice_.chip, effort)
    flops = flops_of(traced.jaxpr)
    plan = Plan(
        topology=slice_.name,
        num_chips=slice_.num_chips,
        mesh=dict(mesh.shape),
        batch_size=images,
        parameters=parameter_count(bundle.parts[name].params),
        model_flops=flops,
        hardware_flops=flops,
        memory=memory,
        compile_seconds=time.monotonic() - started,
    )
    return plan if compiled is None else with_traffic(plan, compiled, slice_)
