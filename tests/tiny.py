"""The cascade of recipe tiny with random weights, and examples for it: for tests of what is around the networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from train.recipes import tiny
from unclip_jax.bundle import Bundle, Part, identity
from unclip_jax.bundle.parts import flatten, unflatten
from unclip_jax.data.captioned_shapes import render as draw
from unclip_jax.data.captioned_shapes import scenes as shapes
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.sources import Record
from unclip_jax.models.prior import EmbeddingStats
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.stages.common import FrozenCLIP

NUM_TRAIN = tiny.DATA.num_train
CONTEXT = tiny.TEXT.context


@functools.cache
def records() -> list[Record]:
    """What captioned_shapes holds for recipe tiny."""
    examples = [shapes.example("train", i) for i in range(NUM_TRAIN)]
    return [
        Record(image=draw.render(scene, tiny.DATA.resolution), caption=caption, name=f"train/{i:06d}")
        for i, (scene, caption) in enumerate(examples)
    ]


@functools.cache
def tokenizer() -> Tokenizer:
    """The one that recipe tiny trains."""
    return Tokenizer.train([record.caption for record in records()], tiny.TEXT.vocab_size)


def batch(size: int, sizes: tuple[int, ...] = (8, 16), crop: int | None = None) -> dict[str, np.ndarray]:
    """The first batch of a run."""
    spec = BatchSpec(batch_size=size, sizes=sizes, crop=crop, context=CONTEXT)
    iterator = batches(records(), tokenizer(), spec)
    try:
        return next(iterator)
    finally:
        iterator.close()


def weights(part: Part, seed: int) -> Part:
    """`part` with weights that make every input count, without compiling the network's own initialisation."""
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

    leaves = flatten(part.abstract_params()).items()
    return dataclasses.replace(part, params=unflatten({name: fill(name, leaf) for name, leaf in leaves}))


@functools.cache
def bundle() -> Bundle:
    """Every part of recipe tiny, one upsampler, the recipes' sampling settings."""
    eos_id, vocab_size = tokenizer().eos_id, tokenizer().vocab_size
    text = dataclasses.replace(tiny.TEXT, vocab_size=vocab_size, eos_id=eos_id)
    clip = weights(Part(kind="clip", spec=dataclasses.replace(tiny.clip().model, text=text)), 0)
    clip = dataclasses.replace(clip, clip_identity=identity(clip.params))
    prior, decoder, upsampler = tiny.prior(), tiny.decoder(), tiny.upsampler()
    # A random network that predicts v draws what its noise says; eps would give -1 and 1 only, x0 one answer.
    processes = [dataclasses.replace(config.process, prediction="v") for config in (prior, decoder, upsampler)]
    parts = {
        "prior": Part(kind="prior", spec=prior.model, process=processes[0], clip_identity=clip.clip_identity),
        "decoder": Part(
            kind="decoder",
            spec=dataclasses.replace(decoder.model, text=text),
            process=processes[1],
            clip_identity=clip.clip_identity,
        ),
        "upsampler_0": Part(kind="upsampler", spec=upsampler.model, process=processes[2], low_res_size=8),
    }
    return Bundle(
        name="tiny",
        license="Apache-2.0",
        description="random weights",
        parts={"clip": clip} | {name: weights(part, seed) for seed, (name, part) in enumerate(parts.items(), 1)},
        sampling={"prior": prior.sampling, "decoder": decoder.sampling, "upsampler_0": upsampler.sampling},
        tokenizer=tokenizer(),
        stats=EmbeddingStats(mean=jnp.linspace(-0.2, 0.2, 16), std=jnp.linspace(0.2, 0.3, 16)),
    )


def frozen_clip() -> FrozenCLIP:
    """The bundle's CLIP, as the later stages take it."""
    part = bundle().part("clip")
    assert part.clip_identity is not None
    return FrozenCLIP(
        spec=part.spec,  # pyright: ignore[reportArgumentType]
        params=part.params,
        tokenizer=tokenizer(),
        identity=part.clip_identity,
    )
