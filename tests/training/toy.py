"""A small stage for the tests of training, an MLP that predicts noise, and a process that runs it.

    python -m tests.training.toy WORKDIR STEPS {die_saving | term_at | hang | wait}=STEP

saves every 5 steps, and kills itself (SIGKILL) while the checkpoint of step `die_saving` is being written, or sends
itself SIGTERM before the step that follows step `term_at`, or gets no more data there (`hang`), or none until there is
a file WORKDIR/go (`wait`).
"""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from unclip_jax.core.errors import run_cli
from unclip_jax.parallel.rules import REPLICATE
from unclip_jax.stages.stage import Stage
from unclip_jax.training.checkpoint import Meta
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.loop import train

WIDTH, BATCH = 8, 16
RULES = (("hidden/kernel", P(None, "fsdp")), (".*", P()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Stage):
    """Predicts eps from sqrt(1 - s) x_0 + sqrt(s) eps with two dense layers."""

    TAG = ("stage", "toy")

    hidden: int = 16
    split: bool = False
    """Whether a kernel lies split over the axis fsdp."""

    def sharding_rules(self):
        return RULES if self.split else REPLICATE

    def init(self, key):
        first, second = jax.random.split(key)
        return {
            "embedding": {"embedding": 0.1 * jax.random.normal(second, (4, WIDTH))},
            "hidden": {
                "kernel": jax.random.normal(first, (WIDTH + 1, self.hidden)) / 3,
                "bias": jnp.zeros(self.hidden),
            },
            "out": {"kernel": jax.random.normal(second, (self.hidden, WIDTH)) / 4, "bias": jnp.zeros(WIDTH)},
        }

    def loss(self, params, target, frozen, batch, keys):
        def draw(key):
            level, noise = jax.random.split(key)
            return jax.random.uniform(level), jax.random.normal(noise, (WIDTH,))

        level, noise = jax.vmap(draw)(keys)
        x_0 = batch["x"] * frozen["scale"] + params["embedding"]["embedding"][batch["label"]]
        x_t = jnp.sqrt(1 - level)[:, None] * x_0 + jnp.sqrt(level)[:, None] * noise
        h = jnp.concatenate([x_t, level[:, None]], -1) @ params["hidden"]["kernel"] + params["hidden"]["bias"]
        out = jax.nn.silu(h) @ params["out"]["kernel"] + params["out"]["bias"]
        error = jnp.mean((out - noise) ** 2, -1)
        noisy = (level > 0.5).astype(jnp.float32)
        return error, {"noisy_loss": (error, noisy), "never": (error, jnp.zeros_like(error))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """A toy run."""

    model: Toy = Toy()
    optim: OptimConfig
    run: RunConfig


FROZEN = {"scale": np.float32(0.5)}


def batches(start_step, size=BATCH, nan_at=()):
    """The global batches from `start_step` on; those of the steps in `nan_at` hold a NaN."""
    step = start_step
    while True:
        rng = np.random.default_rng(step)
        x = rng.normal(size=(size, WIDTH)).astype(np.float32)
        if step in nan_at:
            x[3, 1] = np.nan
        yield {"x": x, "label": rng.integers(0, 4, size, dtype=np.int32)}
        step += 1


def config(workdir, steps, optim=None, **run):
    """(optim, run, meta) of a toy run that logs every third step; by Muon, whose state has Adam's in it."""
    optim = optim or OptimConfig(optimizer="muon", learning_rate=3e-2, warmup_steps=3, weight_decay=0.1, ema_decay=0.9)
    run = RunConfig(**{"workdir": str(workdir), "steps": steps, "log_every": 3, "tensorboard": False} | run)
    meta = Meta(kind="toy", config=ToyConfig(optim=optim, run=run), extra={"note": "hello"})
    return {"optim": optim, "run": run, "meta": meta}


def main():
    workdir, steps, fate = sys.argv[1:]
    fate, _, at = fate.partition("=")

    def fateful(start_step):
        for step, batch in enumerate(batches(start_step), start_step):
            if step == int(at) and fate == "hang":
                time.sleep(100)
            elif step == int(at) and fate == "wait":
                while not (Path(workdir) / "go").exists():
                    time.sleep(0.02)
            elif step == int(at):
                os.kill(os.getpid(), {"die_saving": signal.SIGKILL, "term_at": signal.SIGTERM}[fate])
            yield batch

    # Where the machine is busy, saving may take longer than the data that do not come.
    settings = {"save_every": 100, "hang_timeout": 3} if fate == "hang" else {"save_every": 5}
    train(Toy(), FROZEN, fateful, **config(workdir, int(steps), **settings))


if __name__ == "__main__":
    run_cli(main)
