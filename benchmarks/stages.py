"""What every stage costs on this machine: compile time, training step, sampling latency, peak memory.

    python -m benchmarks.stages [--bundle demo] [--recipe shapes] [--steps 5]

Each stage is measured in a process of its own, so that the peak memory is that stage's. The batches are random pixels
and tokens: shapes are what costs.
"""

import dataclasses
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.recipes import RECIPES
from unclip_jax.bundle import store
from unclip_jax.bundle.parts import Kind
from unclip_jax.cascade import default_settings, draw_embedding, draw_image, upsample
from unclip_jax.core import command_line
from unclip_jax.core.errors import run_cli
from unclip_jax.diffusion.noise import KeyNoise
from unclip_jax.models import clip
from unclip_jax.models.base import parameter_count
from unclip_jax.models.prior import EmbeddingStats
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.parallel.rules import match_rules
from unclip_jax.parallel.step import compile_step
from unclip_jax.training.stages.blueprints import blueprint_of
from unclip_jax.training.state import abstract_state, init, state_shardings
from unclip_jax.training.step import make_step

STAGES: dict[str, Kind] = {
    "clip": "clip",
    "prior": "prior",
    "decoder": "decoder",
    "upsampler_0": "upsampler",
    "upsampler_1": "upsampler",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure every stage."""

    bundle: str = "demo"
    """The bundle to sample with."""
    recipe: str = "shapes"
    """The recipes to train: this name for CLIP, prior and decoder, and name-64 and name-128 for the upsamplers."""
    images: int = 4
    """Images per call when sampling."""
    steps: int = 5
    """Timed training steps."""
    only: str | None = None
    """Measure this stage alone, in this process, and print JSON: how the command calls itself."""


def recipe_of(options: Options, name: str) -> Any:
    """The config that trains the part `name`."""
    suffix = {"upsampler_0": "-64", "upsampler_1": "-128"}.get(name, "")
    return RECIPES[STAGES[name]][options.recipe + suffix]()


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result, when it is ready, and its seconds."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - start


def training(options: Options, name: str) -> dict[str, float]:
    """Compile and step seconds of the recipe's training step."""
    config, clip_spec = recipe_of(options, name), RECIPES["clip"][options.recipe]().model
    plan = blueprint_of(STAGES[name], config, clip_spec)
    rng = np.random.default_rng(0)
    batch = {
        key: np.ones(shape, dtype) if dtype.kind == "b" else rng.integers(0, 256, shape, dtype)
        for key, (shape, dtype) in plan.batch.arrays().items()
    }
    frozen: dict[str, Any] = {}
    if name in ("prior", "decoder"):
        frozen["clip"] = clip.init_params(clip_spec, jax.random.key(1))
    if name == "prior":
        frozen["stats"] = EmbeddingStats(mean=jnp.zeros(clip_spec.embed_dim), std=jnp.ones(clip_spec.embed_dim))

    mesh = make_mesh(config.run.mesh)
    state = init(plan.stage, config.optim, mesh, jax.random.key(0), plan.rules)
    abstract = abstract_state(plan.stage, config.optim, mesh, plan.rules)
    frozen_shardings = match_rules(plan.frozen_rules, frozen, mesh)
    step_fn = make_step(plan.stage, config.optim, total_steps=config.run.steps, seed=0)
    step = compile_step(step_fn, mesh, state_shardings(abstract), frozen_shardings)
    frozen, batch = jax.device_put(frozen, frozen_shardings), step.put(batch)
    (state, _), first = timed(lambda: step.run(state, frozen, batch))
    seconds = []
    for _ in range(options.steps):
        (state, _), elapsed = timed(lambda state=state: step.run(state, frozen, batch))
        seconds.append(elapsed)
    middle = statistics.median(seconds)
    return {"compile": first - middle, "step": middle, "images_per_second": config.data.batch_size / middle}


def sampling(options: Options, name: str) -> dict[str, float]:
    """Compile and call seconds of the bundle's sampling program."""
    bundle = store.load(options.bundle, parts=("clip", name) if STAGES[name] != "upsampler" else (name,))
    part, b = bundle.part(name), options.images
    if name == "clip":
        spec: Any = part.spec
        images = jnp.zeros((b, spec.image_tower.image_size, spec.image_tower.image_size, 3))
        encode = jax.jit(lambda params, images: clip.encode_image(spec, params, images))
        call = lambda: encode(part.params, images)  # noqa: E731
    else:
        how = default_settings(store.load(options.bundle, weights=False))[name]
        noise = KeyNoise(key=jax.random.key(0), indices=jnp.arange(b * (how.num_candidates if name == "prior" else 1)))
        if name in ("prior", "decoder"):
            clip_spec: Any = bundle.part("clip").spec
            tokens = jnp.zeros((b, clip_spec.text_tower.context), jnp.int32)
            mask = jnp.ones(tokens.shape, bool)
        if name == "prior":
            call = lambda: draw_embedding(bundle, tokens, mask, noise, how)  # noqa: E731
        elif name == "decoder":
            z_i = jnp.ones((b, clip_spec.embed_dim))
            call = lambda: draw_image(bundle, z_i, tokens, mask, noise, how)  # noqa: E731
        else:
            low = jnp.zeros((b, part.low_res_size or 0, part.low_res_size or 0, 3))
            call = lambda: upsample(part, low, noise, how)  # noqa: E731
    _, first = timed(call)
    seconds = statistics.median(timed(call)[1] for _ in range(3))
    return {
        "sample_compile": first - seconds,
        "sample": seconds,
        "parameters": float(parameter_count(part.params)),
    }


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1e3) / 1.024


def main() -> None:
    """Prints a table, one row per stage."""
    options: Options = command_line.parse(Options, prog="python -m benchmarks.stages", description=__doc__)
    if options.only is not None:
        result = sampling(options, options.only)
        result["sample_memory"] = peak_memory()
        result |= training(options, options.only)
        result["memory"] = peak_memory()
        print(json.dumps(result))
        return
    print(f"{platform.platform()}, {jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"training: recipe {options.recipe}; sampling: bundle {options.bundle}, {options.images} images a call\n")
    columns = ["part", "parameters", "train compile", "train step", "images/s", "train memory"]
    columns += ["sample compile", "sample", "sample memory"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name in STAGES:
        command = [sys.executable, "-m", "benchmarks.stages", "--only", name]
        for field in ("bundle", "recipe", "images", "steps"):
            command += [f"--{field}", str(getattr(options, field))]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"| {name} | {row['parameters'] / 1e6:.2f} M | {row['compile']:.1f} s | {row['step']:.3f} s "
            f"| {row['images_per_second']:.0f} | {row['memory']:.0f} MB | {row['sample_compile']:.1f} s "
            f"| {row['sample']:.2f} s | {row['sample_memory']:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    run_cli(main)
