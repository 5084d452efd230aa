"""Karlo's prior and decoder at their published sizes: what an import needs, and whether the forwards agree.

    python -m tests.parity.full_size [--folder FOLDER]      about 25 GB of disk, 16 GB of memory

Writes random weights in the hub's layout, imports them in a process of its own and reads that process's peak memory,
then runs one forward of each network in diffusers and here. Exits with 1 where a bound is broken. The upsampler is
small: it is the same code, and twice 0.69 B parameters would only take longer.
"""

import argparse
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import PriorTransformer, UnCLIPScheduler, UNet2DConditionModel
from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel

from tests.parity import peers
from tests.parity.compare import to_ours, to_torch
from tests.parity.weights import draw
from unclip_jax.bundle import store
from unclip_jax.models.cond import EncodedCaption, PriorCond, UNetCond

SIZE = dataclasses.replace(peers.FULL, upsampler_channels=(32, 64, 96, 128))
MEMORY_BOUND, ERROR_BOUND = 1.3, 1e-4
T = [5, 700]
IMPORT = """
import resource
from unclip_jax.convert.__main__ import main
main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_hub_folder(folder: Path) -> None:
    """One component after another, so that memory holds one of them."""
    names = peers.tokenizer(folder / "tokenizer")
    makers = {
        "text_encoder": lambda: peers.text_encoder(len(names), SIZE),
        "prior": lambda: peers.prior(SIZE),
        "decoder": lambda: peers.decoder(SIZE),
        "text_proj": lambda: peers.text_proj(SIZE),
        "super_res_first": lambda: peers.super_res("super_res_first", SIZE),
        "super_res_last": lambda: peers.super_res("super_res_last", SIZE),
    }
    for name, make in makers.items():
        make().save_pretrained(folder / name)
        gc.collect()
        print(f"wrote {name}", flush=True)
    UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0).save_pretrained(folder / "prior_scheduler")
    UnCLIPScheduler(variance_type="learned_range").save_pretrained(folder / "decoder_scheduler")
    UnCLIPScheduler().save_pretrained(folder / "super_res_scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "UnCLIPPipeline"}))


def caption() -> dict[str, np.ndarray]:
    """What CLIP would say of two captions."""
    return {
        "z_t": draw("z_t", (2, SIZE.embed_dim)),
        "hidden": draw("hidden", (2, peers.CONTEXT, SIZE.embed_dim)),
        "mask": np.arange(peers.CONTEXT) < np.array([[9], [4]]),
    }


def timed(call) -> tuple[float, np.ndarray]:
    """Median seconds of three calls after a first, and what they returned."""
    result, seconds = np.asarray(call()), []
    for _ in range(3):
        start = time.perf_counter()
        result = np.asarray(call())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def their_prior(hub: Path, given: dict[str, np.ndarray], x_t: np.ndarray) -> tuple[float, np.ndarray]:
    """Seconds and output in diffusers."""
    network = PriorTransformer.from_pretrained(hub / "prior").eval()
    inputs = [torch.from_numpy(given[name]) for name in ("z_t", "hidden", "mask")]

    def call() -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(x_t), torch.tensor(T), *inputs).predicted_image_embedding.numpy()

    return timed(call)


def our_prior(bundle: Path, given: dict[str, np.ndarray], x_t: np.ndarray) -> tuple[float, np.ndarray]:
    """Seconds and output here."""
    system = store.load(bundle, parts=("prior",))
    ours = {name: jnp.asarray(value) for name, value in given.items()}
    cond = PriorCond(**ours, drop_text=jnp.zeros(2, bool), empty=EncodedCaption(**ours))
    apply, params = jax.jit(system.stage("prior").network.apply), system.params["prior"]
    return timed(lambda: apply(params, jnp.asarray(x_t), jnp.asarray(T, jnp.float32), cond))


def their_decoder(hub: Path, given: dict[str, np.ndarray], x_t: np.ndarray) -> tuple[float, np.ndarray]:
    """Seconds and output in diffusers, text_proj included."""
    network = UNet2DConditionModel.from_pretrained(hub / "decoder").eval()
    projection = UnCLIPTextProjModel.from_pretrained(hub / "text_proj").eval()
    inputs = {name: torch.from_numpy(value) for name, value in given.items()}
    mask = torch.nn.functional.pad(inputs["mask"], (4, 0), value=True)

    def call() -> np.ndarray:
        with torch.no_grad():
            context, added = projection(
                image_embeddings=inputs["z_i"],
                prompt_embeds=inputs["z_t"],
                text_encoder_hidden_states=inputs["hidden"],
                do_classifier_free_guidance=False,
            )
            conditions = {"encoder_hidden_states": context, "class_labels": added, "attention_mask": mask}
            return np.asarray(to_ours(network(to_torch(x_t), torch.tensor(T), **conditions).sample))

    return timed(call)


def our_decoder(bundle: Path, given: dict[str, np.ndarray], x_t: np.ndarray) -> tuple[float, np.ndarray]:
    """Seconds and output here."""
    system = store.load(bundle, parts=("decoder",))
    ours = {name: jnp.asarray(value) for name, value in given.items()}
    nothing = jnp.zeros(2, bool)
    empty = EncodedCaption(**{name: ours[name] for name in ("z_t", "hidden", "mask")})
    cond = UNetCond(drop_z_i=nothing, drop_text=nothing, empty=empty, **ours)
    apply, params = jax.jit(system.stage("decoder").network.apply), system.params["decoder"]
    return timed(lambda: apply(params, jnp.asarray(x_t), jnp.asarray(T, jnp.float32), cond))


def run(folder: Path) -> bool:
    """Whether all bounds hold."""
    hub, bundle = folder / "hub", folder / "bundle"
    if not (hub / "model_index.json").exists():
        write_hub_folder(hub)
    largest = max(path.stat().st_size for path in hub.rglob("*.safetensors"))
    start = time.perf_counter()
    words = ["karlo", str(hub), str(bundle), "--overwrite"]
    command = [sys.executable, "-c", IMPORT, *words]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak = int(output.splitlines()[-1])
    seconds = time.perf_counter() - start
    print(
        f"import: {seconds:.0f} s, peak memory {peak / 1e9:.2f} GB, {peak / largest:.2f} of the largest file "
        f"({largest / 1e9:.2f} GB)",
        flush=True,
    )
    holds = peak <= MEMORY_BOUND * largest
    given = caption()
    runs = {
        "prior": (their_prior, our_prior, given, draw("x_t", (2, SIZE.embed_dim))),
        "decoder": (
            their_decoder,
            our_decoder,
            given | {"z_i": draw("z_i", (2, SIZE.embed_dim))},
            draw("pixels", (2, SIZE.decoder_size, SIZE.decoder_size, 3)),
        ),
    }
    for name, (theirs, ours, conditions, x_t) in runs.items():
        their_seconds, expected = theirs(hub, conditions, x_t)
        gc.collect()
        our_seconds, got = ours(bundle, conditions, x_t)
        gc.collect()
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
        times = f"torch {their_seconds:.2f} s, ours {our_seconds:.2f} s"
        print(f"{name}: relative error {error:.1e}; {times}", flush=True)
        holds &= error <= ERROR_BOUND
    return holds


def main() -> None:
    """In the folder given, which keeps the files for another run, or in a temporary one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to keep the files; a temporary one by default")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.folder is not None:
        sys.exit(not run(options.folder))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not run(Path(folder)))


if __name__ == "__main__":
    main()
