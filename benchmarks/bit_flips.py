"""Flips single bits in the files of a small checkpoint and of a small bundle, one at a time, and reads them again.

    python -m benchmarks.bit_flips [--flips 1000] [--seed 0] [--only bundle]

A flip is refused (in one line), harmless (what is read is the same to the bit), unnoticed (it is not), or a traceback.
Half of the bits are drawn from all bytes alike, half from a file drawn first, so that small files have their share.
"""

import collections
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import PyTree

from train.recipes import tiny
from unclip_jax.bundle import store
from unclip_jax.core import command_line
from unclip_jax.core.config import to_json
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.models.parameters import identity
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems import unclip
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.checkpoint import Checkpoints, Meta, load_params
from unclip_jax.training.state import abstract_state, init

OUTCOMES = ("refused", "harmless", "unnoticed", "traceback")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flip bits of a checkpoint and of a bundle."""

    flips: int = 1000
    """How many in each."""
    seed: int = 0
    """Which."""
    only: Literal["checkpoint", "bundle"] | None = None
    """One of the two alone."""


def outcomes(
    folder: Path, read: Callable[[], PyTree], flips: int, seed: int
) -> tuple[collections.Counter[str], list[str]]:
    """Flip bits of the files in `folder`, one at a time, and count what becomes of `read`.

    Returns the counts, and the flips that were unnoticed or ended in a traceback, in words.
    """
    rng, expected = np.random.default_rng(seed), read()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = np.asarray([path.stat().st_size for path in files])
    counts: collections.Counter[str] = collections.Counter()
    bad = []
    for i in range(flips):
        chosen = rng.choice(len(files), p=sizes / sizes.sum() if i % 2 else None)
        path, byte, bit = files[chosen], int(rng.integers(sizes[chosen])), int(rng.integers(8))
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[byte] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            outcome, why = ("harmless", "") if _same(read(), expected) else ("unnoticed", "")
        except UserError:
            outcome, why = "refused", ""
        except Exception as error:
            outcome, why = "traceback", repr(error)
        path.write_bytes(whole)
        counts[outcome] += 1
        if outcome in ("unnoticed", "traceback"):
            bad.append(f"{outcome}: bit {bit} of byte {byte} of {path.relative_to(folder)} {why}")
    return counts, bad


def _same(found: PyTree, expected: PyTree) -> bool:
    """Whether two trees hold the same bits."""
    ours, theirs = jax.tree.flatten(found), jax.tree.flatten(expected)
    return ours[1] == theirs[1] and all(
        np.asarray(a).dtype == np.asarray(b).dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(ours[0], theirs[0], strict=True)
    )


def make_run(workdir: Path) -> Callable[[], PyTree]:
    """A run of the tiny CLIP with one checkpoint; returns what reads it: to carry on, and to sample."""
    config, mesh = tiny.clip(), make_mesh(MeshSpec(), jax.devices()[:1])
    tokenizer = Tokenizer.train(["a red circle above a blue square"] * 4, config.model.text_tower.vocab_size)
    config = config.fitted({}, tokenizer)
    stage = config.stage()
    meta = Meta(kind="clip", config=config, extra={"stage": to_json(stage), "tokenizer": to_json(tokenizer)})
    abstract = abstract_state(stage, config.optim, mesh)

    def open_run() -> Checkpoints:
        return Checkpoints(workdir, meta=meta, keep=1)

    checkpoints = open_run()
    checkpoints.save(1, init(stage, config.optim, mesh, jax.random.key(0)), {"loss": [0.5, 1.0]})
    checkpoints.wait()
    checkpoints.close()

    def read() -> PyTree:
        checkpoints = open_run()
        try:
            restored = checkpoints.restore(abstract)
        finally:
            checkpoints.close()
        params, said = load_params(workdir)
        return jax.device_get((restored, params)), [said["kind"], str(said["config"]), str(said["extra"])]

    return read


def make_bundle(folder: Path, workdir: Path) -> Callable[[], PyTree]:
    """A bundle of that CLIP and a tiny prior; returns what reads it."""
    params = load_params(workdir)[0]
    config = tiny.clip()
    tokenizer = Tokenizer.train(["a red circle above a blue square"] * 4, config.model.text_tower.vocab_size)
    clip = config.fitted({}, tokenizer).model
    prior = tiny.prior().fitted({"clip": clip}, tokenizer)
    width = clip.shared_sizes()["embed_dim"]
    system = System(
        name="tiny",
        encoders={"clip": Encoder(network=clip, params=params)},
        stages={"prior": prior.stage()},
        params={"prior": prior.stage().init(jax.random.key(1))},
        streams=unclip.streams(["prior"]),
        sampling={"prior": prior.sampling},
        identities=dict.fromkeys(("clip", "prior"), identity(params)),
        tokenizer=tokenizer,
        stats=EmbeddingStats(mean=np.linspace(0, 1, width), std=np.ones(width)),
    )
    store.save(system, folder)

    def read() -> PyTree:
        system = store.load(folder)
        arrays = {name: encoder.params for name, encoder in system.encoders.items()}, system.params, system.stats
        words = [system.name, system.tokenizer, system.stages, system.streams, system.sampling, system.identities]
        return jax.device_get(arrays), [str(word) for word in words]

    return read


def main() -> None:
    """Measure, and print the table."""
    options: Options = command_line.parse(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {"checkpoint": (folder / "run" / "checkpoints", make_run(folder / "run"))}
        made["bundle"] = (folder / "bundle", make_bundle(folder / "bundle", folder / "run"))
        for what, (where, read) in made.items():
            if options.only not in (None, what):
                continue
            started = time.monotonic()
            counts, bad = outcomes(where, read, options.flips, options.seed)
            table = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
            print(f"{what:<10} {options.flips} flips: {table} ({time.monotonic() - started:.0f} s)")
            print("".join(f"  {line}\n" for line in bad), end="")


if __name__ == "__main__":
    run_cli(main)
