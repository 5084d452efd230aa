"""Captions in, images (or embeddings) out: tokenise, cut into batches of one size, run the cascade, collect.

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
from jaxtyping import Float, UInt8

from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import cascade, choose_settings, draw_embedding, prior_noise, stages_until
from unclip_jax.data.tokenizer import Encoded
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
    encoded = _encode(bundle, captions, seed, batch_size)
    num_stages = len(stages_until(bundle, stop_at))
    total, size = len(captions), min(batch_size, len(captions))
    images = []
    for first in range(0, total, size):
        rows, tokens, mask = _batch(encoded, first, size)
        stages = cascade(
            bundle, tokens, mask, jax.random.key(seed), indices=rows, settings=settings, stop_at=stop_at
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


def text_to_embedding(
    bundle: Bundle,
    captions: Sequence[str],
    *,
    seed: int,
    settings: StageSettings | None = None,
    batch_size: int = 16,
) -> Float[np.ndarray, "n d"]:
    """One CLIP image embedding per caption, by the prior alone; the same that `text_to_image` decodes.

    Arguments, errors and warnings as there; `settings` are the prior's.
    """
    encoded = _encode(bundle, captions, seed, batch_size)
    bundle.part("prior")
    chosen = choose_settings(bundle, ["prior"], None if settings is None else {"prior": settings})
    embeddings, size = [], min(batch_size, len(captions))
    for first in range(0, len(captions), size):
        rows, tokens, mask = _batch(encoded, first, size)
        noise = prior_noise(jax.random.key(seed), rows, chosen["prior"])
        embeddings.append(np.asarray(draw_embedding(bundle, tokens, mask, noise, chosen["prior"])))
    return np.concatenate(embeddings)[: len(captions)]


def _encode(bundle: Bundle, captions: Sequence[str], seed: int, batch_size: int) -> Encoded:
    """Tokenised captions, after everything that can be wrong with a request."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be at least 0 and below 2**32")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    if not captions or not all(caption.strip() for caption in captions):
        raise UserError("the prompt is empty; say what to draw")
    if bundle.tokenizer is None:
        raise UserError(f"bundle {bundle.name} has no tokenizer; use one that reads captions")
    encoded = bundle.tokenizer.encode(captions, cast(CLIPSpec, bundle.part("clip").spec).text_tower.context)
    for caption, cut in dict(zip(captions, encoded.cut, strict=True)).items():
        if cut is not None:
            warnings.warn(f"the prompt {caption!r} is too long; this was cut: {cut!r}", CutWarning, stacklevel=3)
    return encoded


def _batch(encoded: Encoded, first: int, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Numbers, tokens and masks of `size` images from `first` on; the last caption fills a batch that is not full."""
    rows = np.arange(first, first + size)
    real = np.minimum(rows, len(encoded.tokens) - 1)
    return jnp.asarray(rows), jnp.asarray(encoded.tokens[real]), jnp.asarray(encoded.mask[real])
