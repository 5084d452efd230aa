"""What comparing digests costs: the time to load a bundle and a checkpoint of some hundred megabytes, with and without.

    python -m benchmarks.digests [--width 768] [--rounds 7]

Each load is the first of a process of its own, as it is for whoever draws or carries on; the two kinds take turns, and
files are in the page cache. Where a core is idle the wall time hides the digests, since a thread compares while arrays
are made; the processor's time does not.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from train.recipes import tiny
from unclip_jax.bundle import store
from unclip_jax.core import command_line
from unclip_jax.core.digests import file_digest
from unclip_jax.core.errors import run_cli
from unclip_jax.core.typing import Params
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.stages.contrastive import ContrastiveStage
from unclip_jax.stages.encoders import Encoder
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.checkpoint import Checkpoints, Meta, load_params
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.state import State, abstract_state, start_from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure what comparing digests costs."""

    width: int = 768
    """Width of the CLIP: 500 MB of weights at 768; its checkpoint, with a sixth of the layers, is a third larger."""
    rounds: int = 9
    """Loads of each kind; the quickest are compared, since other work on the machine only adds."""


def main() -> None:
    """Measure, and print the table."""
    options: Options = command_line.parse(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder), options.width)
        for what, where in LOADS.items():
            times: dict[str, list[list[float]]] = {"0": [], "1": []}
            for turn in range(options.rounds):
                for skip in ("01", "10")[turn % 2]:
                    times[skip].append(_run(what, folder, options.width, skip))
            compared, skipped = (np.min(np.asarray(times[skip]), 0) for skip in "01")
            size = sum(path.stat().st_size for path in _files(Path(folder) / where))
            print(
                f"{what:<24} {size / 1e6:>4.0f} MB   wall {skipped[0]:.2f} s, with digests {compared[0]:.2f} s",
                end="   ",
            )
            print(f"processor {skipped[1]:.2f} s, digests {compared[2]:.3f} s ({compared[2] / skipped[1]:.1%})")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _spec(width: int, layers: int) -> tuple[CLIPSpec, Tokenizer]:
    tokenizer = Tokenizer.train(["a red circle above a blue square"] * 4, 270)
    vocab_size, eos_id = tokenizer.vocab_size, tokenizer.eos_id
    sizes = {"width": width, "num_layers": layers, "num_heads": 8}
    text = TextSpec(vocab_size=vocab_size, context=77, eos_id=eos_id, **sizes)
    vision = VisionSpec(image_size=224, patch_size=16, **sizes)
    return CLIPSpec(embed_dim=512, vision=vision, text=text), tokenizer


def _weights(spec: CLIPSpec) -> Params:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), spec.abstract_params())


def _make(folder: Path, width: int) -> None:
    spec, tokenizer = _spec(width, 9)
    encoders = {"clip": Encoder(network=spec, params=_weights(spec))}
    store.save(System(name="large", encoders=encoders, stages={}, tokenizer=tokenizer), folder / "bundle")
    checkpoints, abstract = _open_run(folder, width)
    checkpoints.save(1, start_from(_weights(_spec(width, 3)[0]), abstract, OptimConfig()), {})
    checkpoints.wait()
    checkpoints.close()


def _open_run(folder: Path, width: int) -> tuple[Checkpoints, State]:
    stage = ContrastiveStage(network=_spec(width, 3)[0])
    abstract = abstract_state(stage, OptimConfig(), make_mesh(MeshSpec(), jax.devices()[:1]))
    return Checkpoints(folder / "run", meta=Meta(kind="clip", config=tiny.clip()), keep=1), abstract


LOADS = {
    "bundle": "bundle",
    "checkpoint, to carry on": "run/checkpoints",
    "checkpoint, its average": "run/checkpoints/1/ema",
}


def load(what: str, where: str, width: int) -> None:
    """Load once, and print the seconds of wall time and of the processor's, and those that digests alone take."""
    folder, opened = Path(where), None
    jax.block_until_ready(jax.numpy.zeros(1))
    if what == "checkpoint, to carry on":
        opened = _open_run(folder, width)
    wall, processor = time.perf_counter(), time.process_time()
    if what == "bundle":
        found = store.load(folder / "bundle").encoders["clip"].params
    elif opened is not None:
        found = opened[0].restore(opened[1])
    else:
        found = load_params(folder / "run")[0]
    jax.block_until_ready(found)
    wall, processor, own = time.perf_counter() - wall, time.process_time() - processor, time.process_time()
    for path in _files(folder / LOADS[what]):
        file_digest(path)
    print(wall, processor, time.process_time() - own)
    if opened is not None:
        opened[0].close()


def _run(what: str, folder: str, width: int, skip: str) -> list[float]:
    command = [sys.executable, "-c", f"from benchmarks.digests import load; load({what!r}, {folder!r}, {width})"]
    environment = {**os.environ, "UNCLIP_JAX_NO_CHECK": skip, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return [float(word) for word in done.stdout.split()[-3:]]


if __name__ == "__main__":
    run_cli(main)
