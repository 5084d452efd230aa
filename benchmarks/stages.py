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
from unclip_jax.core import command_line
from unclip_jax.core.errors import run_cli
from unclip_jax.models.parameters import parameter_count
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.parallel.step import compile_step
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.encoders import Encoder, frozen_shardings
from unclip_jax.stages.settings import Options as SampleOptions
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.stages.stage import array_shape
from unclip_jax.systems.system import Step, noise_of, program_of
from unclip_jax.training.state import abstract_state, init, state_shardings
from unclip_jax.training.step import make_step

ROLES = {
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
    return RECIPES[ROLES[name]][options.recipe + suffix]()


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result, when it is ready, and its seconds."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - start


def training(options: Options, name: str) -> dict[str, float]:
    """Compile and step seconds of the recipe's training step."""
    config, clip = recipe_of(options, name), RECIPES["clip"][options.recipe]().stage().network
    encoders = dict.fromkeys(config.encoder_paths(), clip)
    config = config.fitted(encoders)
    stage = config.stage()
    rng = np.random.default_rng(0)
    batch = {
        key: np.ones(shape, dtype) if dtype.kind == "b" else rng.integers(0, 256, shape, dtype)
        for key, (shape, dtype) in config.batch(encoders).arrays().items()
    }
    frozen: dict[str, Any] = {
        each: Encoder(network=network, params=network.init(jax.random.key(1))) for each, network in encoders.items()
    }
    if stage.needs_stats:
        width = clip.shared_sizes()["embed_dim"]
        frozen["stats"] = EmbeddingStats(mean=jnp.zeros(width), std=jnp.ones(width))

    mesh = make_mesh(config.run.mesh)
    state = init(stage, config.optim, mesh, jax.random.key(0))
    abstract = abstract_state(stage, config.optim, mesh)
    where = frozen_shardings(frozen, mesh)
    step_fn = make_step(stage, config.optim, total_steps=config.run.steps, seed=0)
    step = compile_step(step_fn, mesh, state_shardings(abstract), where)
    frozen, batch = jax.device_put(frozen, where), step.put(batch)
    (state, _), first = timed(lambda: step.run(state, frozen, batch))
    seconds = []
    for _ in range(options.steps):
        (state, _), elapsed = timed(lambda state=state: step.run(state, frozen, batch))
        seconds.append(elapsed)
    middle = statistics.median(seconds)
    return {"compile": first - middle, "step": middle, "images_per_second": config.data.batch_size / middle}


def sampling(options: Options, name: str) -> dict[str, float]:
    """Compile and call seconds of the bundle's sampling program."""
    described = store.load(options.bundle, weights=False)
    encoders = described.stages[name].encoders if name in described.stages else ()
    system, b = store.load(options.bundle, parts=(*encoders, name)), options.images
    if name in system.encoders:
        encoder = system.encoder(name)
        size = encoder.clip.image_tower.image_size
        images, encode = jnp.zeros((b, size, size, 3)), jax.jit(Encoder.encode_image)
        params, call = encoder.params, lambda: encode(encoder, images)
    else:
        networks, settings = system.networks, system.settings([name])
        rows = {}
        for array in system.stages[name].reads:
            row = array_shape(array, networks)
            rows[array] = jnp.ones((b, *row.shape), row.dtype)
        noise = noise_of(system, name, jax.random.key(0), jnp.arange(b), settings)
        step = Step(DiffusionStage.sample, SampleOptions(settings=settings[name]))
        params, call = system.params[name], lambda: program_of(system, name, step, rows, noise)()
    _, first = timed(call)
    seconds = statistics.median(timed(call)[1] for _ in range(3))
    return {
        "sample_compile": first - seconds,
        "sample": seconds,
        "parameters": float(parameter_count(params)),
    }


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1e3) / 1.024


def main() -> None:
    """Print a table, one row per stage."""
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
    for name in ROLES:
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
