"""What embeddings that are computed once save: a prior trained from a store, against the run that encodes.

    python -m benchmarks.stores [--photographs 512] [--images 2048] [--steps 40] [--recipe shapes] [--bundle demo]

Captioned shapes of 128 px, or what weighs as much as photographs, are written as a folder, encoded with the bundle's
CLIP, and the recipe's prior is trained from either, each in a process of its own so that the peak memory is its own.
Images a second are those of the run's own log, reading and all, after the step has compiled, and those of one core by
processor time, so that other work on the machine does not count; and those that one core reads, crops, resizes and
tokenises, which is the bound where an accelerator trains.
"""

import contextlib
import dataclasses
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.input import photograph
from train.recipes import RECIPES
from unclip_jax.core import command_line
from unclip_jax.core.errors import run_cli
from unclip_jax.data.captioned_shapes import scenes
from unclip_jax.data.captioned_shapes.render import render
from unclip_jax.data.config import DataConfig
from unclip_jax.training.encoders import FrozenEncoder
from unclip_jax.training.encoding import EncodeConfig, encode
from unclip_jax.training.run import train
from unclip_jax.training.stage_configs import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a prior's training from images and from a store."""

    photographs: int | None = None
    """Pixels of the shorter side of JPEGs as heavy as photographs; None for shapes, PNGs of 128 px."""
    images: int = 2048
    """Different images."""
    steps: int = 40
    """Steps of either run, of which the second half is timed."""
    seconds: float = 4.0
    """Processor time for which reading is measured."""
    recipe: str = "shapes"
    """The recipe of the prior."""
    bundle: str = "demo"
    """Whose CLIP."""
    only: str | None = None
    """Train from this source alone, in this process, and print JSON: how the command calls itself."""


marks: list[float] = []
"""Processor seconds of this process when each batch was asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marked(DataConfig):
    """Data that note when their batches are asked for."""

    def batches(self, *args: Any, **options: Any) -> Generator[dict[str, np.ndarray], None, None]:
        marks.clear()
        for batch in super().batches(*args, **options):
            marks.append(time.process_time())
            yield batch


def write_folder(folder: Path, options: Options) -> None:
    """Write images with captions."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(options.images):
        scene, caption = scenes.example("train", number)
        if options.photographs is None:
            Image.fromarray(render(scene, 128)).save(folder / f"{number:06d}.png")
        else:
            (folder / f"{number:06d}.jpg").write_bytes(photograph(rng, options.photographs))
        (folder / f"{number:06d}.txt").write_text(caption)


def read(config: Config, clip: FrozenEncoder, seconds: float) -> float:
    """Images of the config's batches that are ready, per second of processor time."""
    data = dataclasses.replace(config.data, num_threads=1)
    embeddings = data.open_store()
    brought = ("z_i",) if embeddings is not None else ()
    spec = config.batch({"clip": clip.encoder.network}, brought)
    source = data.open(captions=True, images=bool(spec.sizes), store=embeddings)
    with contextlib.closing(data.batches(source, clip.tokenizer, spec, 0)) as batches:
        next(batches)
        start, count = time.process_time(), 0
        while time.process_time() - start < seconds:
            next(batches)
            count += spec.batch_size
        return count / (time.process_time() - start)


def trained(options: Options, source: str) -> dict[str, float]:
    """Train a few steps: images a second, MB of the frozen CLIP and of this process at its peak; and read alone."""
    recipe = RECIPES["prior"][options.recipe]()
    half = options.steps // 2
    with tempfile.TemporaryDirectory() as workdir:
        changes = {"workdir": workdir, "steps": 2 * half, "log_every": half, "sample_every": 0, "tensorboard": False}
        config = dataclasses.replace(
            recipe,
            clip=options.bundle,
            data=Marked(**vars(dataclasses.replace(recipe.data, source=source))),
            run=dataclasses.replace(recipe.run, **changes),
        )
        train(config)
        core = (half - 1) * config.data.batch_size / (marks[-1] - marks[-half])
        lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    towers = config.stage().towers(("z_i",) if config.data.alone else ())
    clip = FrozenEncoder.load("clip", options.bundle, towers if config.data.alone else None)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(clip.encoder.params))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = json.loads(lines[-1])["images_per_second"]
    return {"rate": rate, "core": core, "clip": size / 1e6, "peak": peak, "read": read(config, clip, options.seconds)}


def main() -> None:
    """Print a table, one row a source."""
    options: Options = command_line.parse(Options, prog="python -m benchmarks.stores", description=__doc__)
    if options.only is not None:
        print("\n" + json.dumps(trained(options, options.only)))
        return
    print(f"{platform.processor() or platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "images", Path(scratch) / "store"
        write_folder(folder, options)
        start = time.perf_counter()
        encode(EncodeConfig(data=DataConfig(batch_size=1, source=str(folder)), clip=options.bundle, out=out))
        seconds = time.perf_counter() - start
        print(f"encoded {options.images:,} images in {seconds:.1f} s, compiling included\n")
        print("| trained from | images/s | a core | ratio | read by a core | ratio | frozen CLIP | peak memory |")
        print("|---|---|---|---|---|---|---|---|")
        first: dict[str, float] = {}
        for name, source in {"images, encoded in every step": str(folder), "a store": f"store:{out}"}.items():
            words = [f"--{each}={getattr(options, each)}" for each in ("recipe", "bundle", "steps", "seconds")]
            command = [sys.executable, "-m", "benchmarks.stores", *words, f"--only={source}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            first = first or found
            rates = " | ".join(f"{found[each]:,.0f} | {found[each] / first[each]:.2f}" for each in ("core", "read"))
            print(
                f"| {name} | {found['rate']:.0f} | {rates} | {found['clip']:.2f} MB | {found['peak']:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    run_cli(main)
