"""One run of any stage: encoders, data, statistics, weights to start from, preview, loop.

    train(config)          config: `unclip_jax.training.stage_configs`, as recipes return them

A checkpoint's meta says, besides the config, what belongs to the weights (`unclip_jax.training.belongings`). A run that
carries on, or starts from weights, takes it from there (`unclip_jax.training.origin`).
"""

import dataclasses
import functools
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from unclip_jax.adapters.stage import BASE, AdaptedStage
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.data.config import RESUMABLE_DATA_FIELDS, DataConfig
from unclip_jax.data.held_out import split
from unclip_jax.data.pipeline import BatchSpec
from unclip_jax.data.records import Source
from unclip_jax.data.stores import EmbeddingStore, Space
from unclip_jax.models.base import Network
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.models.parameters import identity
from unclip_jax.stages.encoders import Encoder
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training import loop, remarks
from unclip_jax.training.adapting import trained_stage
from unclip_jax.training.belongings import AdapterOf, Belongings
from unclip_jax.training.checkpoint import Meta
from unclip_jax.training.encoders import FrozenEncoder
from unclip_jax.training.lock import hold
from unclip_jax.training.origin import Origin, find_origin, find_start
from unclip_jax.training.preview import make_preview
from unclip_jax.training.stage_configs import CLIPConfig, Config
from unclip_jax.training.state import State
from unclip_jax.training.statistics import measure_stats
from unclip_jax.training.validation import validation_of

TOKENIZER_CAPTIONS = 20_000
"""Captions that a tokenizer is trained on, spread over the data; more change its merges little."""


def train(config: Config) -> State:
    """Train what `config` describes, or carry on from the run's newest checkpoint; see `loop.train`.

    Raises:
        UserError: another process trains the run, an encoder, the data or the weights to start from are missing, and
            whatever `loop.train` raises.
    """
    with hold(config.run):
        return _train(config)


def _train(config: Config) -> State:
    store = config.data.open_store()
    brought, towers = _brought(config, store)
    encoders = {name: FrozenEncoder.load(name, where, towers) for name, where in config.encoder_paths().items()}
    networks = {name: each.encoder.network for name, each in encoders.items()}
    if store is not None:
        _fit(store, config, encoders["clip"])
    wanted = config.batch(networks, brought)
    source = config.data.open(captions=wanted.context is not None, images=bool(wanted.sizes), store=store)
    held_out = None
    if config.validation.share:
        source, held_out = split(source, config.validation.share)
    elif config.validation.wanted:
        data = _held_out(config)
        own_store = data.open_store() if data.alone else store
        if data.alone and own_store is not None:
            _fit(own_store, config, encoders["clip"])
        held_out = data.open(captions=wanted.context is not None, images=bool(wanted.sizes), store=own_store)
    origin = find_origin(config)
    own = Belongings(
        tokenizer=_tokenizer(config, encoders),
        identities={name: each.identity for name, each in encoders.items()},
        sampling=getattr(config, "sampling", None),
    )
    if origin is not None:
        own = origin.inherit(own, measure=getattr(config, "stats", "inherit") == "measure")
    if own.tokenizer is None and isinstance(config, CLIPConfig):
        own = dataclasses.replace(own, tokenizer=_train_tokenizer(config, source))
    tokenizer = own.tokenizer
    config = config.fitted(networks, tokenizer)
    if origin is not None:
        origin.check(config, own.stats)
    stage, spec = config.stage(), config.batch(networks, brought)
    stage.check()
    if isinstance(stage.network, TimestepExperts):
        # It applies the expert of the first example's time to all of them.
        raise UserError("the network is several, each for times of its own; train them one by one")
    remarks.say(remarks.of_sizes(stage, spec, len(source), config.optim.accumulate))
    own = dataclasses.replace(own, stage=stage)

    def batches_of(
        spec: BatchSpec, start_step: int, source: Source = source
    ) -> Generator[dict[str, np.ndarray], None, None]:
        processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        return config.data.batches(source, tokenizer, spec, start_step, **processes)

    frozen: dict[str, Any] = {name: each.encoder for name, each in encoders.items()}
    if stage.needs_stats:
        if own.stats is None:
            normalise: Any = getattr(config, "normalise", "whiten")
            measured = measure_stats(encoders["clip"].encoder, lambda step: batches_of(spec, step), normalise)
            own = dataclasses.replace(own, stats=measured)
        frozen["stats"] = own.stats
    whole = dataclasses.replace(spec, crop=None)
    previewed = {"training": lambda step: batches_of(whole, step)}
    if held_out is not None:
        previewed["held out"] = lambda step: batches_of(whole, step, held_out)
    trained = trained_stage(config)
    start = functools.partial(_start_params, origin, stage.network)
    if isinstance(trained, AdaptedStage):
        frozen[BASE], adapter = _adapted(config, stage.network, origin)
        own, start = dataclasses.replace(own, adapter=adapter), lambda: None
    meta = Meta(
        kind=config.kind,
        config=config,
        extra=own.to_meta(),
        may_change=(*RESUMABLE_DATA_FIELDS, "start_from", "stats", "sampling.*", *config.encoder_paths()),
    )
    return loop.train(
        trained,
        frozen,
        lambda step: remarks.remarked(batches_of(spec, step), stage, spec, len(source)),
        optim=config.optim,
        run=config.run,
        meta=meta,
        preview=make_preview(trained, previewed, tokenizer),
        validation=None if held_out is None else validation_of(config, spec, source, held_out, tokenizer),
        start_params=start,
    )


def _start_params(origin: Origin | None, network: Network) -> Params | None:
    """Read the weights that a new run starts from; None for random ones, or where it carries on."""
    return None if origin is None or origin.resumed else origin.params(network)


def _adapted(config: Config, network: Network, origin: Origin | None) -> tuple[Encoder, AdapterOf]:
    """Read the weights that the run of an adapter adapts; UserError where it was started with others."""
    if not config.start_from:
        raise UserError(
            f"lora.rank is {config.lora.rank}, but an adapter adapts weights that are there; "
            "set --start-from to a bundle or a run's workdir"
        )
    start = find_start(config, config.start_from)
    params = start.params(network)
    own = AdapterOf(lora=config.lora, base=identity(params), where=config.start_from, part=start.part)
    theirs = origin.belongings.adapter if origin is not None and origin.resumed else None
    if theirs is not None and theirs.base != own.base:
        raise UserError(
            f"the weights in {own.where} are {own.base[:12]}, but the run adapts {theirs.base[:12]}; put those back"
        )
    return Encoder(network=network, params=params), own


def _brought(config: Config, store: EmbeddingStore | None) -> tuple[tuple[str, ...], frozenset[str] | None]:
    """Return which arrays of a store the run takes, those that spare it a tower of CLIP, and the towers it still needs;
    None for all. Raises UserError for a stage that has no use for z_i."""
    if store is None:
        return (), None
    stage = config.stage()
    offered = store.arrays if config.data.alone else ("z_i",)
    brought = tuple(name for name in offered if stage.towers((name,)) != stage.towers())
    if "z_i" not in brought:
        raise UserError(f"a run of the kind {config.kind} takes no embeddings of images; leave the store out")
    return brought, stage.towers(brought)


def _fit(store: EmbeddingStore, config: Config, clip: FrozenEncoder) -> None:
    """Make sure that a store is of the run's CLIP."""
    spec, where = clip.encoder.clip, config.data.store_clip
    stated = None
    if where:
        same = where == config.encoder_paths()["clip"]
        stated = clip.identity if same else FrozenEncoder.load("clip", where, towers=()).identity
    store.fit(Space(clip=clip.identity, embed_dim=spec.embed_dim, unit=spec.embedding == "unit"), stated)


def _held_out(config: Config) -> DataConfig:
    """Return where the held-out split or source of a run is; UserError where it is what the run trains on."""
    data, wanted = config.data, config.validation
    if wanted.split and data.alone:
        raise UserError("a store of embeddings has no splits; hold out a share of it with --validation.share")
    if wanted.split:
        held_out = dataclasses.replace(data, split=wanted.split)
    else:
        held_out = dataclasses.replace(data, source=wanted.source, split="train")
    if held_out == data:
        option = "--validation.split" if wanted.split else "--validation.source"
        raise UserError(f"{option} names what is trained on; name another, or hold out --validation.share of it")
    if held_out.alone != data.alone:
        raise UserError("where --data.source is a store of embeddings --validation.source must be one, and only there")
    return held_out


def _tokenizer(config: Config, encoders: dict[str, FrozenEncoder]) -> Tokenizer | None:
    """Return the tokenizer of the encoders, or the one that a CLIP run is given."""
    for encoder in encoders.values():
        return encoder.tokenizer
    given = config.tokenizer if isinstance(config, CLIPConfig) else None
    return None if given is None else Tokenizer.from_file(given)


def _train_tokenizer(config: CLIPConfig, source: Source) -> Tokenizer:
    """Train a tokenizer on the captions of a run's data."""
    count = min(len(source), TOKENIZER_CAPTIONS)
    rows = np.linspace(0, len(source) - 1, count).astype(int).tolist()
    captions = (caption for row in rows for caption in source[row].captions)
    return Tokenizer.train(captions, config.model.text_tower.vocab_size)
