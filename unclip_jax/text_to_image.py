"""Captions in, images (or embeddings) out: tokenise, cut into batches of one size, run the cascade, collect.

This is the whole system as one function, for scripts and for the commands of `sample/`:

    bundle = load("demo")
    images = text_to_image(bundle, ["a red circle above a blue square"] * 4, seed=0)
"""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import cascade, choose_settings, draw_embedding, prior_noise, stages_until
from unclip_jax.core.errors import UserError
from unclip_jax.images.pixels import to_uint8
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.parallel.distributed import fetch, put_whole
from unclip_jax.parallel.step import batch_sharding
from unclip_jax.sharding import place
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text.tokenizer import Encoded


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
    only: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    mesh: Mesh | None = None,
    read_parts: Callable[[tuple[str, ...]], Bundle] | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    """One image per caption, or image `only` as the only one.

    Args:
        seed: of the whole request; image i is the same whatever the batch size.
        settings: by part; the bundle's own where a part is not named.
        stop_at: size in pixels after which to stop; None runs the whole cascade.
        batch_size: images drawn at once, by each replica; the last batch is padded, so that it runs the programs of the
            others.
        only: draw this image alone, by its number, in the batch that it has in the whole request: to the bit the same.
        progress: called after every stage of every batch.
        mesh: devices, of all hosts, that share the captions; the default device alone for None. Every host gets every
            image.
        read_parts: reads the named parts when their stage begins. All batches then go through one stage after another,
            and the weights of a stage are freed when it ends, so that the largest stage has to fit, not their sum.

    Raises:
        UserError: a caption is empty, a setting out of range, or the bundle lacks a part.
        ValueError: there is no image `only`.

    Warns `CutWarning` for every distinct caption that is longer than the context.
    """
    encoded = _encode(bundle, captions, seed, batch_size)
    names = stages_until(bundle, stop_at)
    replicas = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    total = len(captions)
    if only is not None and not 0 <= only < total:
        raise ValueError(f"there is no image {only} among {total}")
    size = min(batch_size, math.ceil(total / replicas)) * replicas
    if read_parts is None and mesh is not None:
        bundle = place(bundle, mesh)
    parts = dict(bundle.parts)
    drawing = dataclasses.replace(bundle, parts=parts)
    batches = {
        first: cascade(
            drawing,
            *_batch(encoded, first, size, mesh),
            jax.random.key(seed),
            indices=_rows(np.arange(first, first + size), mesh),
            settings=settings,
            stop_at=stop_at,
        )
        for first in range(0, total, size)
        if only is None or first <= only < first + size
    }
    images = {}
    for name, first in _order(names, list(batches), by_stage=read_parts is not None):
        start = time.perf_counter()
        if read_parts is not None and first == min(batches):
            # The stage before goes before this one comes.
            parts.update(bundle.parts)
            needed = (name,) if bundle.parts[name].kind == "upsampler" else ("clip", name)
            read = read_parts(needed)
            parts.update((read if mesh is None else place(read, mesh)).parts)
            del read
        last = jax.block_until_ready(next(batches[first]).value)
        if progress is not None:
            done, seconds = min(first + size, total), time.perf_counter() - start
            progress(Progress(name, 1 + names.index(name), len(names), done, total, seconds))
        if name == names[-1]:
            images[first] = to_uint8(fetch(last))
    if only is not None:
        (first,) = images
        return images[first][only - first : only - first + 1]
    return np.concatenate([images[first] for first in sorted(images)])[:total]


def _order(names: list[str], batches: list[int], *, by_stage: bool) -> list[tuple[str, int]]:
    """Every stage of every batch: batch after batch, or stage after stage."""
    if by_stage:
        return [(name, first) for name in names for first in batches]
    return [(name, first) for first in batches for name in names]


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
        tokens, mask = _batch(encoded, first, size)
        rows = jnp.arange(first, first + size)
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


def _batch(encoded: Encoded, first: int, size: int, mesh: Mesh | None = None) -> tuple[jax.Array, jax.Array]:
    """Tokens and masks of `size` images from `first` on; the last caption fills a batch that is not full."""
    real = np.minimum(np.arange(first, first + size), len(encoded.tokens) - 1)
    return _rows(encoded.tokens[real], mesh), _rows(encoded.mask[real], mesh)


def _rows(array: np.ndarray, mesh: Mesh | None) -> jax.Array:
    return jnp.asarray(array) if mesh is None else put_whole(array, batch_sharding(mesh))
