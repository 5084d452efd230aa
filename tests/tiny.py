"""The cascade of recipe tiny with random weights, and examples for it: for tests of what is around the networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from train.recipes import tiny
from unclip_jax.core.typing import Params
from unclip_jax.data.captioned_shapes import scenes
from unclip_jax.data.captioned_shapes.render import render
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.records import Record
from unclip_jax.models.base import Network
from unclip_jax.models.parameters import flatten, identity, unflatten
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems import unclip
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.encoders import FrozenEncoder

NUM_TRAIN = tiny.DATA.num_train
CONTEXT = tiny.TEXT.context


@functools.cache
def records() -> list[Record]:
    """What captioned_shapes holds for recipe tiny."""
    examples = [scenes.example("train", i) for i in range(NUM_TRAIN)]
    return [
        Record(image=render(scene, tiny.DATA.resolution), captions=(caption,), name=f"train/{i:06d}")
        for i, (scene, caption) in enumerate(examples)
    ]


@functools.cache
def tokenizer() -> Tokenizer:
    """The one that recipe tiny trains."""
    return Tokenizer.train([record.captions[0] for record in records()], tiny.TEXT.vocab_size)


def batch(size: int, sizes: tuple[int, ...] = (8, 16), crop: int | None = None) -> dict[str, np.ndarray]:
    """The first batch of a run."""
    spec = BatchSpec(batch_size=size, sizes=sizes, crop=crop, context=CONTEXT)
    iterator = batches(records(), tokenizer(), spec)
    try:
        return next(iterator)
    finally:
        iterator.close()


def weights(network: Network, seed: int) -> Params:
    """Weights that make every input count, without compiling the network's own initialisation."""
    rng = np.random.default_rng(seed)

    def fill(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.normal(size=leaf.shape)
        if name.endswith("scale"):
            value = 1 + 0.1 * noise
        elif name.endswith("kernel"):
            value = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            value = 0.3 * noise
        return jnp.asarray(value, jnp.float32)

    leaves = flatten(network.abstract_params()).items()
    return unflatten({name: fill(name, leaf) for name, leaf in leaves})


@functools.cache
def system() -> System:
    """Every stage of recipe tiny, one upsampler, the recipes' sampling settings."""
    eos_id, vocab_size = tokenizer().eos_id, tokenizer().vocab_size
    text = dataclasses.replace(tiny.TEXT, vocab_size=vocab_size, eos_id=eos_id)
    clip_spec = dataclasses.replace(tiny.clip().model, text=text)
    clip = Encoder(network=clip_spec, params=weights(clip_spec, 0))
    own = identity(clip.params)
    configs = {"prior": tiny.prior(), "decoder": tiny.decoder(), "upsampler_0": tiny.upsampler()}
    # A random network that predicts v draws what its noise says; eps would give -1 and 1 only, x0 one answer.
    stages = {
        name: dataclasses.replace(stage, process=dataclasses.replace(stage.process, prediction="v"))
        for name, stage in ((name, config.fitted({"clip": clip_spec}).stage()) for name, config in configs.items())
    }
    return System(
        name="tiny",
        license="Apache-2.0",
        description="random weights",
        encoders={"clip": clip},
        stages=dict(stages),
        params={name: weights(stage.network, seed) for seed, (name, stage) in enumerate(stages.items(), 1)},
        streams=unclip.streams(list(stages)),
        sampling={name: config.sampling for name, config in configs.items()},
        identities={"clip": own, "prior": own, "decoder": own},
        tokenizer=tokenizer(),
        stats=EmbeddingStats(mean=jnp.linspace(-0.2, 0.2, 16), std=jnp.linspace(0.2, 0.3, 16)),
    )


def without(name: str, of: System | None = None) -> System:
    """A system that lacks an encoder or a stage."""
    whole = of or system()
    fields = ("encoders", "stages", "params", "streams", "sampling", "identities")
    kept = {field: {key: value for key, value in getattr(whole, field).items() if key != name} for field in fields}
    return dataclasses.replace(whole, **kept)


def with_stage(name: str, seed: int, of: System | None = None, **network) -> System:
    """A system in which the network of a stage has other fields, and new weights."""
    whole = of or system()
    stage = whole.stage(name)
    stage = dataclasses.replace(stage, network=dataclasses.replace(stage.network, **network))
    params = whole.params | {name: weights(stage.network, seed)}
    return dataclasses.replace(whole, stages=whole.stages | {name: stage}, params=params)


def frozen_clip() -> FrozenEncoder:
    """The system's CLIP, as the later stages take it."""
    return FrozenEncoder(encoder=system().encoder("clip"), tokenizer=tokenizer(), identity=system().identities["clip"])


def replaced(config, **changes):
    """A dataclass with other fields; a dict changes fields of what is in a field."""
    inner = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **inner)
