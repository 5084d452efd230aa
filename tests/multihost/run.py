"""One of several processes of a test; it finds the others on this machine.

    python -m tests.multihost.run COORDINATOR NUM_PROCESSES PROCESS_ID {stages | toy | encoded} ARGUMENTS

ARGUMENTS are JSON, those of the functions below.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tests import tiny
from tests.training import toy
from tests.training.test_devices import OPTIM, STEPS, small
from unclip_jax.core.errors import run_cli
from unclip_jax.data.config import DataConfig
from unclip_jax.parallel.distributed import ClusterSpec, from_all, gather_rows, put_global, start, to_host
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import batch_sharding, compile_step
from unclip_jax.sampling.text_to_image import text_to_image
from unclip_jax.stages.encoders import frozen_shardings
from unclip_jax.training import encoding
from unclip_jax.training.checkpoint import FOLDER
from unclip_jax.training.loop import train
from unclip_jax.training.preview import first_examples
from unclip_jax.training.state import abstract_state, start_from, state_shardings
from unclip_jax.training.step import make_step
from unclip_jax.training.tracker import HELD_OUT, TRAINING
from unclip_jax.training.validation import Evaluator, Validation

KINDS = ("clip", "prior", "decoder", "upsampler")
LAYOUT = MeshSpec(data=8)
ONE_LEVEL = {"channel_mult": (1,)}
"""The axis tensor takes no part here."""
PROMPTS = ["a red ring above a blue square", "two green stars", "a circle"] * 3


def my_rows(batch):
    """This process's rows of a global batch."""
    rows = len(jax.tree.leaves(batch)[0]) // jax.process_count()
    first = rows * jax.process_index()
    return {name: value[first : first + rows] for name, value in batch.items()}


def stage_losses(kind):
    """Ten losses of a stage over all devices of all processes."""
    stage, params, frozen, batch = small(kind, **ONE_LEVEL)
    mesh = make_mesh(LAYOUT)
    abstract = abstract_state(stage, OPTIM, mesh)
    state = start_from(jax.device_get(params), abstract, OPTIM)
    shardings = frozen_shardings(frozen, mesh)
    frozen = put_global(frozen, shardings)
    step = make_step(stage, OPTIM, total_steps=STEPS, seed=0)
    compiled = compile_step(step, mesh, state_shardings(abstract), shardings)
    losses = []
    for _ in range(STEPS):
        state, metrics = compiled.run(state, frozen, compiled.put(my_rows(batch)))
        losses.append(float(metrics["loss"]))
    return losses


def evaluated():
    """What an evaluation of the toy finds, which ten examples of either kind make."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, toy.WIDTH)).astype(np.float32)
    whole = {"x": np.concatenate([x, x[:6]]), "label": np.arange(16, dtype=np.int32) % 4}
    examples = {name: lambda rows: [my_rows(jax.tree.map(lambda x: x[:rows], whole))] for name in (HELD_OUT, TRAINING)}
    fields = {"every": 1, "patience": 1, "count": 10, "most_rows": 16, "what": "a test"}
    mesh = make_mesh(LAYOUT)
    layout = state_shardings(abstract_state(toy.Toy(), OPTIM, mesh)).ema
    frozen = put_global(toy.FROZEN, frozen_shardings(toy.FROZEN, mesh))
    params = put_global(jax.device_get(toy.Toy().init(jax.random.key(0))), layout)
    judge = Evaluator(toy.Toy(), Validation(examples=examples, **fields), mesh, layout, None)
    return judge(params, frozen)[HELD_OUT]


def images(mesh=None):
    """Nine images, so that a second batch is not full."""
    return text_to_image(tiny.system(), PROMPTS, seed=3, stop_at=8, batch_size=1, mesh=mesh).tolist()


def stages(folder):
    """Losses of every stage, images, and what this process sees of arrays on all, as JSON in FOLDER/<process>."""
    jax.config.update("jax_disable_most_optimizations", True)
    rows = my_rows({"x": np.arange(16)})["x"]
    whole = put_global(np.arange(8.0), batch_sharding(make_mesh(LAYOUT)))
    seen = {
        "gathered": gather_rows(rows).tolist(),
        "first": [first_examples(lambda _: (b for b in [{"x": rows}]), n)["x"].tolist() for n in (4, 10)],
        "fetched": to_host(jax.jit(lambda x: 2 * x)(whole)).tolist(),
        "numbers": from_all(jax.process_index()),
        "images": images(make_mesh(LAYOUT)),
        "evaluated": evaluated(),
        "losses": {kind: stage_losses(kind) for kind in KINDS},
    }
    (Path(folder) / str(jax.process_index())).write_text(json.dumps(seen))


def toy_run(workdir, steps, fate=None, who=(), at=-1, pause=0.0, **run):
    """A toy run; at step `at`, past the checkpoint of step 5, the signal `fate` meets the processes `who`."""

    def batches(start_step):
        for step, batch in enumerate(toy.batches(start_step), start_step):
            time.sleep(pause)
            if step == at and jax.process_index() in who:
                while not (Path(workdir) / FOLDER / "5").exists():
                    time.sleep(0.05)
                os.kill(os.getpid(), getattr(signal, fate))
            yield my_rows(batch)

    train(toy.Toy(), toy.FROZEN, batches, **toy.config(workdir, steps, **{"save_every": 5, **run}))


def encoded(photos, bundle, out, fate=None):
    """Encodes photos; with `fate` process 1 meets that signal before it writes its second shard."""
    jax.config.update("jax_disable_most_optimizations", True)
    if fate is not None and jax.process_index() == 1:
        write_shard, written = encoding.write_shard, []

        def dying(*args):
            if written:
                os.kill(os.getpid(), getattr(signal, fate))
            written.append(args)
            return write_shard(*args)

        encoding.write_shard = dying
    data = DataConfig(source=photos, batch_size=1)
    sizes = {"dtype": "float32", "text": True, "batch_size": 2, "shard_records": 6}
    encoding.encode(encoding.EncodeConfig(data=data, clip=bundle, out=Path(out), **sizes))


def main():
    coordinator, count, process, job, arguments = sys.argv[1:]
    cluster = ClusterSpec(
        coordinator=coordinator,
        num_processes=int(count),
        process_id=int(process),
        start_timeout=int(os.environ.get("START_TIMEOUT", "120")),
        heartbeat_timeout=10,
    )
    start(cluster)
    {"stages": stages, "toy": toy_run, "encoded": encoded}[job](**json.loads(arguments))


if __name__ == "__main__":
    run_cli(main)
