"""The table of docs/parity.md: how closely each part of Karlo agrees with PyTorch's, and how fast either is.

    python -m tests.parity.table --size mid --threads 2

Both sides get the same weights and inputs, in float32, and run in turn; times are medians of several rounds, the ratio
is theirs over ours, so that above 1 ours is faster.
"""

import argparse
import dataclasses
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
    theirs: list[float]
    ours: list[float]

    def __str__(self) -> str:
        ratios = [their / our for their, our in zip(self.theirs, self.ours, strict=True)]
        return (
            f"| {self.part} | {self.parameters / 1e6:,.1f} M | {self.max_error:.1e} | {self.mean_error:.1e} "
            f"| {statistics.median(self.theirs):.3f} | {statistics.median(self.ours):.3f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |"
        )


HEADER = (
    "| part | parameters | largest error | mean error | torch, s | ours, s | ratio (range) |\n"
    "|---|---|---|---|---|---|---|"
)


def arguments() -> argparse.Namespace:
    """The command line; read before jax and torch count the cores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "mid"), default="mid", help="of the networks")
    parser.add_argument("--threads", type=int, default=2, help="of either side")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each side, in turn")
    return parser.parse_args()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result once it is there."""
    import jax

    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


def row(part: str, parameters: int, theirs: Callable, ours: Callable, rounds: int) -> Row:
    """Runs both sides in turn after one round each that does not count."""
    import numpy as np

    expected, got = np.asarray(theirs()), np.asarray(ours())
    error = np.abs(got - expected) / np.abs(expected).max()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, call in enumerate((theirs, ours)):
            seconds[side].append(timed(call)[0])
    return Row(part, parameters, float(error.max()), float(error.mean()), *seconds)


def rows(size: str, rounds: int) -> Iterator[Row | str]:
    """The rows, one after another as they are measured, and what to know of the last."""
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

    def channels_last(function: Callable[[], torch.Tensor]) -> Callable[[], np.ndarray]:
        def call() -> np.ndarray:
            with torch.no_grad():
                return np.asarray(to_ours(function()))

        return call

    encoded = tokenise(system, CAPTIONS)
    captions = {name: jnp.asarray(array) for name, array in encoded.items()}
    their_tokens, their_mask = torch.from_numpy(encoded["tokens"]).long(), torch.from_numpy(encoded["mask"])
    clip, params = system.encoder("clip"), system.params
    times, t = jnp.asarray([5.0, 700.0]), torch.tensor([5, 700])

    encode = jax.jit(Encoder.encode_text)
    yield row(
        "text encoder",
        parameter_count(clip.params),
        channels_last(lambda: pipeline.text_encoder(their_tokens).last_hidden_state),
        lambda: encode(clip, captions["tokens"]).hidden,
        rounds,
    )

    with torch.no_grad():
        caption = pipeline.text_encoder(their_tokens)
    x_t = draw("x_t", (2, sizes.embed_dim))
    cond = system.stage("prior").condition(system.weights("prior"), captions, 2)
    apply_prior = jax.jit(system.stage("prior").network.apply)
    yield row(
        "prior",
        parameter_count(params["prior"]),
        channels_last(
            lambda: (
                pipeline.prior(
                    torch.from_numpy(x_t), t, caption.text_embeds, caption.last_hidden_state, their_mask
                ).predicted_image_embedding
            )
        ),
        lambda: apply_prior(params["prior"], jnp.asarray(x_t), times, cond),
        rounds,
    )

    z_i = draw("z_i", (2, sizes.embed_dim))
    pixels = draw("pixels", (2, sizes.decoder_size, sizes.decoder_size, 3))
    rows_of_decoder = {"z_i": jnp.asarray(z_i), **captions}
    cond = system.stage("decoder").condition(system.weights("decoder"), rows_of_decoder, 2)
    apply_decoder = jax.jit(system.stage("decoder").network.apply)

    def their_decoder() -> torch.Tensor:
        context, added = pipeline.text_proj(
            image_embeddings=torch.from_numpy(z_i),
            prompt_embeds=caption.text_embeds,
            text_encoder_hidden_states=caption.last_hidden_state,
            do_classifier_free_guidance=False,
        )
        padded = torch.nn.functional.pad(their_mask, (4, 0), value=True)
        return pipeline.decoder(
            to_torch(pixels), t, encoder_hidden_states=context, class_labels=added, attention_mask=padded
        ).sample

    yield row(
        "text_proj and decoder",
        parameter_count(params["decoder"]),
        channels_last(their_decoder),
        lambda: apply_decoder(params["decoder"], jnp.asarray(pixels), times, cond),
        rounds,
    )

    side = sizes.upsampler_size
    x_large, low_res = (draw(name, (1, side, side, 3)) for name in ("x_large", "low_res"))
    apply_upsampler = jax.jit(system.stage("upsampler_0").network.expert.apply)
    for name, expert in (("super_res_first", "expert_1"), ("super_res_last", "expert_0")):
        both = torch.cat([to_torch(x_large), to_torch(low_res)], dim=1)
        network, own = getattr(pipeline, name), params["upsampler_0"][expert]
        yield row(
            name,
            parameter_count(own),
            channels_last(lambda network=network, both=both: network(both, t[:1]).sample),
            lambda own=own: apply_upsampler(
                own, jnp.asarray(x_large), times[:1], UNetCond(low_res=jnp.asarray(low_res))
            ),
            rounds,
        )

    tapes = pipelines.tapes_of(
        {
            "prior": (2, sizes.embed_dim),
            "decoder": (2, sizes.decoder_size, sizes.decoder_size, 3),
            "upsampler_0": (2, side, side, 3),
        }
    )
    unclipped = set()

    def their_images() -> np.ndarray:
        images, number = pipelines.their_images(pipeline, tapes)
        unclipped.add(number)
        return images

    yield row(
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
    for each in rows(options.size, options.rounds):
        print(each, flush=True)


if __name__ == "__main__":
    sys.exit(main())
