"""The table of docs/parity.md: how closely each part of Karlo agrees with PyTorch's, and how fast either is.

    python -m tests.parity.table --size mid --threads 2

All sides get the same weights and inputs, in float32. torch runs as it comes, and in its best form: every network
compiled, U-Nets in channels_last. Each round runs all of them, in an order that changes from round to round, so that
none always follows the same. Times are medians without what compiles; ratios are theirs over ours, so that above 1 ours
is faster.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    parameters: int
    max_error: float
    mean_error: float
    seconds: dict[str, list[float]]
    """Of every round, by side: "eager", perhaps "best", and "ours"."""

    def __str__(self) -> str:
        cells = [self.part, f"{self.parameters / 1e6:,.1f} M", f"{self.max_error:.1e}", f"{self.mean_error:.1e}"]
        cells += [f"{statistics.median(self.seconds[side]):.3f}" if side in self.seconds else "" for side in SIDES]
        for side in SIDES[:-1]:
            pairs = zip(self.seconds.get(side, []), self.seconds["ours"], strict=False)
            ratios = [their / our for their, our in pairs]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "")
        return f"| {' | '.join(cells)} |"


SIDES = ("eager", "best", "ours")
HEADER = (
    "| part | parameters | largest error | mean error | torch, s | torch at its best, s | ours, s "
    "| torch / ours (range) | best / ours (range) |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def arguments() -> argparse.Namespace:
    """The command line; read before jax and torch count the cores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "mid"), default="mid", help="of the networks")
    parser.add_argument("--threads", type=int, default=2, help="of either side")
    parser.add_argument("--rounds", type=int, default=6, help="timed calls of each side; six are every order once")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="where torch finds no C++ compiler")
    return parser.parse_args()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result once it is there."""
    import jax

    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


def row(part: str, parameters: int, sides: dict[str, Callable], rounds: int) -> Row:
    """Runs the sides in every order after a round that does not count; the error is that against torch as it comes."""
    import numpy as np

    results = {side: np.asarray(call()) for side, call in sides.items()}
    error = np.abs(results["ours"] - results["eager"]) / np.abs(results["eager"]).max()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for order in itertools.islice(itertools.cycle(itertools.permutations(sides)), rounds):
        for side in order:
            seconds[side].append(timed(sides[side])[0])
    return Row(part, parameters, float(error.max()), float(error.mean()), seconds)


def at_its_best(pipeline: Any) -> Any:
    """The pipeline with U-Nets in the layout that torch's convolutions like on a CPU, and every network compiled."""
    import torch

    for name in ("decoder", "super_res_first", "super_res_last"):
        getattr(pipeline, name).to(memory_format=torch.channels_last)
    for name in ("prior", "decoder", "text_encoder", "text_proj", "super_res_first", "super_res_last"):
        getattr(pipeline, name).compile(dynamic=False)
    return pipeline


def rows(size: str, rounds: int, compiled: bool) -> Iterator[Row | str]:
    """The rows, one after another as they are measured, and what to know of the last."""
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    from tests.parity import peers, pipelines
    from tests.parity.compare import CAPTIONS, to_ours, to_torch
    from tests.parity.weights import draw
    from unclip_jax.bundle import store
    from unclip_jax.convert.karlo import import_karlo
    from unclip_jax.editing.embeddings import tokenise
    from unclip_jax.models.cond import UNetCond
    from unclip_jax.models.parameters import parameter_count
    from unclip_jax.stages.encoders import Encoder

    sizes = {"small": peers.SMALL, "mid": peers.MID}[size]
    with tempfile.TemporaryDirectory() as folder:
        pipeline = peers.karlo(Path(folder) / "tokenizer", sizes)
        pipeline.save_pretrained(Path(folder) / "hub")
        imported, _ = import_karlo(Path(folder) / "hub", "karlo")
        store.save(imported, Path(folder) / "bundle")
        system = store.load(Path(folder) / "bundle")

    torches = {"eager": pipeline}
    if compiled:
        torches["best"] = at_its_best(peers.karlo(Path(tempfile.mkdtemp()) / "tokenizer", sizes))

    def measured(part: str, parameters: int, theirs: Callable, ours: Callable, rounds: int = rounds) -> Row:
        def call(pipeline: Any) -> np.ndarray:
            with torch.no_grad():
                result = theirs(pipeline)
            return np.asarray(to_ours(result) if isinstance(result, torch.Tensor) else result)

        sides = {name: functools.partial(call, each) for name, each in torches.items()}
        return row(part, parameters, sides | {"ours": ours}, rounds)

    def laid_out(images: torch.Tensor, pipeline: Any) -> torch.Tensor:
        best = pipeline is torches.get("best")
        return images.contiguous(memory_format=torch.channels_last if best else torch.contiguous_format)

    encoded = tokenise(system, CAPTIONS)
    captions = {name: jnp.asarray(array) for name, array in encoded.items()}
    their_tokens, their_mask = torch.from_numpy(encoded["tokens"]).long(), torch.from_numpy(encoded["mask"])
    clip, params = system.encoder("clip"), system.params
    times, t = jnp.asarray([5.0, 700.0]), torch.tensor([5, 700])

    encode = jax.jit(Encoder.encode_text)
    yield measured(
        "text encoder",
        parameter_count(clip.params),
        lambda pipeline: pipeline.text_encoder(their_tokens).last_hidden_state,
        lambda: encode(clip, captions["tokens"]).hidden,
    )

    with torch.no_grad():
        caption = pipeline.text_encoder(their_tokens)
    x_t = draw("x_t", (2, sizes.embed_dim))
    cond = system.stage("prior").condition(system.weights("prior"), captions, 2)
    apply_prior = jax.jit(system.stage("prior").network.apply)

    def their_prior(pipeline: Any) -> torch.Tensor:
        given = caption.text_embeds, caption.last_hidden_state, their_mask
        return pipeline.prior(torch.from_numpy(x_t), t, *given).predicted_image_embedding

    yield measured(
        "prior",
        parameter_count(params["prior"]),
        their_prior,
        lambda: apply_prior(params["prior"], jnp.asarray(x_t), times, cond),
    )

    z_i = draw("z_i", (2, sizes.embed_dim))
    pixels = draw("pixels", (2, sizes.decoder_size, sizes.decoder_size, 3))
    rows_of_decoder = {"z_i": jnp.asarray(z_i), **captions}
    cond = system.stage("decoder").condition(system.weights("decoder"), rows_of_decoder, 2)
    apply_decoder = jax.jit(system.stage("decoder").network.apply)

    def their_decoder(pipeline: Any) -> torch.Tensor:
        context, added = pipeline.text_proj(
            image_embeddings=torch.from_numpy(z_i),
            prompt_embeds=caption.text_embeds,
            text_encoder_hidden_states=caption.last_hidden_state,
            do_classifier_free_guidance=False,
        )
        padded = torch.nn.functional.pad(their_mask, (4, 0), value=True)
        given = {"encoder_hidden_states": context, "class_labels": added, "attention_mask": padded}
        return pipeline.decoder(laid_out(to_torch(pixels), pipeline), t, **given).sample

    yield measured(
        "text_proj and decoder",
        parameter_count(params["decoder"]),
        their_decoder,
        lambda: apply_decoder(params["decoder"], jnp.asarray(pixels), times, cond),
    )

    side = sizes.upsampler_size
    x_large, low_res = (draw(name, (1, side, side, 3)) for name in ("x_large", "low_res"))
    apply_upsampler = jax.jit(system.stage("upsampler_0").network.expert.apply)
    for name, expert in (("super_res_first", "expert_1"), ("super_res_last", "expert_0")):
        both = torch.cat([to_torch(x_large), to_torch(low_res)], dim=1)
        own = params["upsampler_0"][expert]
        yield measured(
            name,
            parameter_count(own),
            lambda pipeline, name=name, both=both: getattr(pipeline, name)(laid_out(both, pipeline), t[:1]).sample,
            lambda own=own: apply_upsampler(
                own, jnp.asarray(x_large), times[:1], UNetCond(low_res=jnp.asarray(low_res))
            ),
        )

    tapes = pipelines.tapes_of(
        {
            "prior": (2, sizes.embed_dim),
            "decoder": (2, sizes.decoder_size, sizes.decoder_size, 3),
            "upsampler_0": (2, side, side, 3),
        }
    )
    unclipped = set()

    def their_images(pipeline: Any) -> np.ndarray:
        images, number = pipelines.their_images(pipeline, tapes)
        unclipped.add(number)
        return images

    yield measured(
        f"pipeline, {' + '.join(map(str, pipelines.STEPS.values()))} steps",
        sum(parameter_count(each) for each in (clip.params, *params.values())),
        their_images,
        lambda: pipelines.our_images(system, tapes),
        max(rounds // 2, 2),
    )
    yield f"\nNumbers of the pipeline that the clip does not catch at t = 999: {max(unclipped)}"


def main() -> None:
    """Prints the table, row by row."""
    options = arguments()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen={options.threads > 1}"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    import torch

    torch.set_num_threads(options.threads)
    print(HEADER, flush=True)
    for each in rows(options.size, options.rounds, options.compile):
        print(each, flush=True)


if __name__ == "__main__":
    sys.exit(main())
