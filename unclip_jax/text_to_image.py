"""Captions in, images out: tokenise, cut into batches of one size, run the cascade, collect.

This is the whole system as one function, for scripts and for the commands of `sample/`:

    bundle = load("demo")
    images = text_to_image(bundle, ["a red circle above a blue square"] * 4, seed=0)
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import cascade, stages_until
from unclip_jax.errors import UserError
from unclip_jax.images import to_uint8
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.settings import StageSettings


class Progress(NamedTuple):
    """What has just been finished: stage `stage` of `num_stages` for images up to `done` of `total`."""

    part: str
    stage: int
    num_stages: int
    done: int
    total: int
    seconds: float


class CutWarning(UserWarning):
    """A prompt is longer than the context, and what was cut of it."""


def text_to_image(
    bundle: Bundle,
    captions: Sequence[str],
    *,
    seed: int,
    settings: dict[str, StageSettings] | None = None,
    stop_at: int | None = None,
    batch_size: int = 16,
    progress: Callable[[Progress], None] | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    """One image per caption.

    Args:
        seed: of the whole request; image i is the same whatever the batch size.
        settings: by part; the bundle's own where a part is not named.
        stop_at: size in pixels after which to stop; None runs the whole cascade.
        batch_size: images drawn at once; the last batch is padded, so that it runs the programs of the others.
        progress: called after every stage of every batch.

    Raises:
        UserError: a caption is empty, a setting out of range, or the bundle lacks a part.

    Warns `CutWarning` for every distinct caption that is longer than the context.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be at least 0 and below 2**32")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    if not captions or not all(caption.strip() for caption in captions):
        raise UserError("the prompt is empty; say what to draw")
    num_stages = len(stages_until(bundle, stop_at))
    if bundle.tokenizer is None:
        raise UserError(f"bundle {bundle.name} has no tokenizer; use one that reads captions")
    encoded = bundle.tokenizer.encode(captions, cast(CLIPSpec, bundle.part("clip").spec).text_tower.context)
    for caption, cut in dict(zip(captions, encoded.cut, strict=True)).items():
        if cut is not None:
            warnings.warn(f"the prompt {caption!r} is too long; this was cut: {cut!r}", CutWarning, stacklevel=2)

    total, size = len(captions), min(batch_size, len(captions))
    images = []
    for first in range(0, total, size):
        rows = np.arange(first, first + size)
        real = np.minimum(rows, total - 1)
        stages = cascade(
            bundle,
            jnp.asarray(encoded.tokens[real]),
            jnp.asarray(encoded.mask[real]),
            jax.random.key(seed),
            indices=jnp.asarray(rows),
            settings=settings,
            stop_at=stop_at,
        )
        last, start = None, time.perf_counter()
        for stage, last in enumerate(stages, start=1):
            jax.block_until_ready(last.value)
            now = time.perf_counter()
            if progress is not None:
                progress(Progress(last.part, stage, num_stages, min(first + size, total), total, now - start))
            start = now
        assert last is not None  # stages_until never returns an empty list
        images.append(to_uint8(last.value))
    return np.concatenate(images)[:total]
