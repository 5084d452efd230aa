"""One run of any stage: encoders, data, statistics, weights to start from, preview, loop.

    train(config)          config: `unclip_jax.training.stage_configs`, as recipes return them

A checkpoint's meta says, besides the config, what belongs to the weights: the stage itself, the tokenizer, the identity
of the CLIP that it was trained with, the statistics of z_i, and how a bundle is to sample it.
"""

import dataclasses
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from unclip_jax.core.config import to_json
from unclip_jax.data.config import RESUMABLE_DATA_FIELDS
from unclip_jax.data.pipeline import BatchSpec
from unclip_jax.data.sources import Source
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training import loop, remarks
from unclip_jax.training.checkpoint import Meta, newest_meta
from unclip_jax.training.encoders import FrozenEncoder, load_start
from unclip_jax.training.preview import make_preview
from unclip_jax.training.stage_configs import CLIPConfig, Config
from unclip_jax.training.state import State
from unclip_jax.training.statistics import measure_stats, stats_from_json, stats_to_json

TOKENIZER_CAPTIONS = 20_000
"""Captions that a tokenizer is trained on, spread over the data; more change its merges little."""


def train(config: Config) -> State:
    """Train what `config` describes, or carry on from the run's newest checkpoint; see `loop.train`.

    Raises:
        UserError: an encoder, the data or the weights to start from are missing, and whatever `loop.train` raises.
    """
    encoders = {name: FrozenEncoder.load(name, where) for name, where in config.encoder_paths().items()}
    networks = {name: each.encoder.network for name, each in encoders.items()}
    source = config.data.open(captions=config.batch(networks).context is not None)
    tokenizer = _tokenizer(config, encoders, source)
    config = config.fitted(networks, tokenizer)
    stage, spec = config.stage(), config.batch(networks)
    stage.check()
    remarks.say(remarks.of_sizes(stage, spec, len(source), config.optim.accumulate))

    def batches_of(spec: BatchSpec, start_step: int) -> Generator[dict[str, np.ndarray], None, None]:
        processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        return config.data.batches(source, tokenizer, spec, start_step, **processes)

    frozen: dict[str, Any] = {name: each.encoder for name, each in encoders.items()}
    extra: dict[str, Any] = {"stage": to_json(stage)}
    if tokenizer is not None:
        extra["tokenizer"] = to_json(tokenizer)
    extra |= {f"{name}_identity": each.identity for name, each in encoders.items()}
    if stage.needs_stats:
        saved = newest_meta(config.run.workdir)
        if saved is not None and "stats" in saved["extra"]:
            # Its weights live in that space, whatever the data are now.
            frozen["stats"] = stats_from_json(saved["extra"]["stats"])
        else:
            normalise: Any = getattr(config, "normalise", "whiten")
            encoder = encoders["clip"].encoder
            frozen["stats"] = measure_stats(encoder, lambda step: batches_of(spec, step), normalise)
        extra["stats"] = stats_to_json(frozen["stats"])
    sampling = getattr(config, "sampling", None)
    if sampling is not None:
        extra["sampling"] = to_json(sampling)
    meta = Meta(
        kind=config.kind,
        config=config,
        extra=extra,
        may_change=(*RESUMABLE_DATA_FIELDS, "start_from", "sampling.*", *config.encoder_paths()),
        must_match=tuple(name for name in extra if name == "tokenizer" or name.endswith("_identity")),
    )
    whole = dataclasses.replace(spec, crop=None)
    return loop.train(
        stage,
        frozen,
        lambda step: remarks.remarked(batches_of(spec, step), stage, spec, len(source)),
        optim=config.optim,
        run=config.run,
        meta=meta,
        preview=make_preview(stage, lambda step: batches_of(whole, step)),
        start_params=lambda: load_start(config.start_from, config.kind, stage.network),
    )


def _tokenizer(config: Config, encoders: dict[str, FrozenEncoder], source: Source) -> Tokenizer | None:
    """Return the tokenizer of the encoders, or the one that a CLIP run is given, or train one on the captions of its
    data."""
    for encoder in encoders.values():
        return encoder.tokenizer
    if not isinstance(config, CLIPConfig):
        return None
    if config.tokenizer is not None:
        return Tokenizer.from_file(config.tokenizer)
    count = min(len(source), TOKENIZER_CAPTIONS)
    rows = np.linspace(0, len(source) - 1, count).astype(int).tolist()
    captions = (caption for row in rows for caption in source[row].captions)
    return Tokenizer.train(captions, config.model.text_tower.vocab_size)
