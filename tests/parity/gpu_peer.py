"""The torch side of `python -m benchmarks.gpu`, which starts it, tells it what to do, and says how they talk.

    python -m tests.parity.gpu_peer --what decoder --size full --batch 16 --device cuda

A training step is autocast to bfloat16 over float32 weights, with torch.compile over network and loss, and fused AdamW.
Sampling is diffusers' `UnCLIPPipeline` in bfloat16, every network compiled. JAX is not needed.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

# A cache would hide what compiling takes.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import torch
from diffusers.pipelines.unclip import pipeline_unclip
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler

from tests.parity import peers
from tests.parity.hybrid_loss import HybridLoss

SIZES = {"small": peers.SMALL, "mid": peers.MID, "full": peers.FULL}
VOCABULARY = 49408
PROMPT = "a red circle above the blue square"
WARM_UP = 2
RATE, DECAY = 1.2e-4, 0.01

Call = Callable[[], Any]
"""One training step or one request; gives the loss, or the images."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("prior", "decoder", "sampling"), required=True)
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="of the networks")
    parser.add_argument("--batch", type=int, default=4, help="examples of a step, or images of a request")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="where there is no compiler")
    return parser.parse_args()


@contextlib.contextmanager
def initial_weights(device: str) -> Iterator[None]:
    """Inside, `peers` builds networks where they will run and leaves them torch's own weights: its usual ones are
    drawn by name in numpy, minutes of work for a billion."""
    with mock.patch.object(peers, "fill", lambda module, name: module), torch.device(device):
        yield


def build(what: str, size: peers.Size, device: str) -> dict[str, torch.nn.Module]:
    """The networks of "prior", "decoder" or "sampling", by the names that the pipeline gives them."""
    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "prior": lambda: peers.prior(size),
        "decoder": lambda: peers.decoder(size),
        "text_proj": lambda: peers.text_proj(size),
        "text_encoder": lambda: peers.text_encoder(VOCABULARY, size),
        "super_res_first": lambda: peers.super_res("super_res_first", size),
        "super_res_last": lambda: peers.super_res("super_res_last", size),
    }
    wanted = {"prior": ("prior",), "decoder": ("decoder", "text_proj"), "sampling": tuple(makers)}[what]
    with initial_weights(device):
        return {name: makers[name]() for name in wanted}


def trained(networks: dict[str, torch.nn.Module]) -> list[torch.nn.Parameter]:
    """Their weights, without the statistics of z_i that a prior keeps beside them."""
    named = [pair for network in networks.values() for pair in network.named_parameters()]
    return [value for name, value in named if name not in ("clip_mean", "clip_std")]


def lay_out(networks: dict[str, Any], device: str) -> torch.memory_format:
    """Brings U-Nets into the layout that the device's convolutions like, and returns it."""
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    for name in networks.keys() & {"decoder", "super_res_first", "super_res_last"}:
        networks[name].to(memory_format=layout)
    return layout


def training(options: argparse.Namespace) -> tuple[int, Call]:
    """The number of weights, and a step."""
    size, device, b = SIZES[options.size], options.device, options.batch
    networks = build(options.what, size, device)
    layout = lay_out(networks, device)
    parameters = trained(networks)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY, fused=device == "cuda")
    hybrid = HybridLoss()
    hybrid.tables = {name: table.to(device) for name, table in hybrid.tables.items()}

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(b, *shape, device=device)

    is_prior = options.what == "prior"
    shape = (size.embed_dim,) if is_prior else (3, size.decoder_size, size.decoder_size)
    x_0, noise, z_i, z_t = normal(*shape).tanh(), normal(*shape), normal(size.embed_dim), normal(size.embed_dim)
    if not is_prior:
        x_0, noise = (x.contiguous(memory_format=layout) for x in (x_0, noise))
    hidden, t = normal(peers.CONTEXT, size.embed_dim), torch.randint(0, 1000, (b,), device=device)
    mask = torch.arange(peers.CONTEXT, device=device) < torch.randint(2, peers.CONTEXT, (b, 1), device=device)
    padded = torch.nn.functional.pad(mask, (4, 0), value=True)

    def prior_loss() -> torch.Tensor:
        x_t = hybrid.noised(x_0, t, noise)
        with torch.autocast(device, torch.bfloat16):
            output = networks["prior"](x_t, t, z_t, hidden, mask).predicted_image_embedding
        return (output.float() - x_0).square().mean()

    def decoder_loss() -> torch.Tensor:
        x_t = hybrid.noised(x_0, t, noise)
        with torch.autocast(device, torch.bfloat16):
            context, added = networks["text_proj"](
                image_embeddings=z_i,
                prompt_embeds=z_t,
                text_encoder_hidden_states=hidden,
                do_classifier_free_guidance=False,
            )
            conditions = {"encoder_hidden_states": context, "class_labels": added, "attention_mask": padded}
            output = networks["decoder"](x_t, t, **conditions).sample
        return hybrid(output.float(), x_0, t, noise).mean()

    loss_fn: Any = prior_loss if is_prior else decoder_loss
    if options.compile:
        loss_fn = torch.compile(loss_fn)

    def call() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return sum(value.numel() for value in parameters), call


def resized(image: torch.Tensor, size: list[int], mode: str, align_corners: bool, antialias: bool) -> torch.Tensor:
    """`interpolate` by way of float32: with antialias not every device has it in bfloat16."""
    options: dict[str, Any] = {"size": size, "mode": mode, "align_corners": align_corners, "antialias": antialias}
    return torch.nn.functional.interpolate(image.float(), **options).to(image.dtype)


def sampling(options: argparse.Namespace) -> tuple[int, Call]:
    """The number of weights, and a request: captions to images in host memory."""
    networks: dict[str, Any] = {
        name: network.to(torch.bfloat16).eval()
        for name, network in build("sampling", SIZES[options.size], options.device).items()
    }
    lay_out(networks, options.device)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = peers.tokenizer(Path(folder))
    pipeline: Any = pipeline_unclip.UnCLIPPipeline(
        **networks,
        tokenizer=tokenizer,
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    if options.compile:
        for network in networks.values():
            network.compile()
    # What the pipeline itself calls, not its networks.
    functions = types.SimpleNamespace(interpolate=resized, pad=torch.nn.functional.pad)

    def call() -> Any:
        with mock.patch.object(pipeline_unclip, "F", functions):
            return pipeline([PROMPT] * options.batch, decoder_guidance_scale=8.0, output_type="np").images

    return sum(value.numel() for value in trained(networks)), call


def run(call: Call, steps: int, device: str) -> tuple[float, float]:
    """Seconds of one of `steps` calls in a row, and the mean of what the last one gave."""
    start, result = time.perf_counter(), None
    for _ in range(steps):
        result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    return seconds, float(torch.as_tensor(result).float().mean())


def main() -> None:
    """Answers until stdin ends."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options = arguments()
    device = options.device
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    # Shapes never change, so it may try every algorithm once, as XLA does.
    torch.backends.cudnn.benchmark = True
    if device == "cpu":
        torch.set_num_threads(options.threads)

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    answer(
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        software=f"torch {torch.__version__}" + ("" if options.compile else " without compile"),
    )
    call: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            parameters, call = (sampling if options.what == "sampling" else training)(options)
            first, _ = run(call, 1, device)
            seconds, _ = run(call, WARM_UP, device)
            answer(parameters=parameters, compile_seconds=max(first - seconds, 0.0))
        else:
            seconds, value = run(call, request["steps"], device)
            answer(seconds=seconds, value=value)


if __name__ == "__main__":
    main()
