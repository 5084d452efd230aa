"""Each stage with random weights, a batch for it, and its compiled loss."""

import dataclasses
import functools
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from tests import tiny
from train.recipes import tiny as recipes
from unclip_jax.images.pixels import to_float
from unclip_jax.stages.contrastive import ContrastiveStage
from unclip_jax.training.step import example_keys

BATCH = 16
DIFFUSION = ("prior", "decoder", "upsampler")


class Example(NamedTuple):
    """What `stage.loss` takes, but the moving average and the keys."""

    stage: Any
    params: Any
    frozen: Any
    batch: dict[str, jax.Array]


def batch(**options) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, tiny.batch(BATCH, **options))


@functools.cache
def example(kind: str) -> Example:
    """The stage of recipe tiny."""
    clip = tiny.system().encoder("clip")
    if kind == "clip":
        return Example(ContrastiveStage(network=clip.clip), clip.params, {}, batch())
    name = "upsampler_0" if kind == "upsampler" else kind
    stage = with_conditions(tiny.system().stage(name), kind)
    if kind == "prior":
        return Example(stage, tiny.system().params["prior"], {"clip": clip, "stats": tiny.system().stats}, batch())
    # One level, to compile sooner; with dropout, which has to be an example's own too.
    attending = (8,) if kind == "decoder" else ()
    one_level = {"channel_mult": (1,), "attention_resolutions": attending, "dropout": 0.3}
    stage = dataclasses.replace(with_network(stage, **one_level), weighting="min_snr")
    params = tiny.weights(stage.network, 7)
    if kind == "decoder":
        return Example(stage, params, {"clip": clip}, batch())
    return Example(stage, params, {}, batch(sizes=(16,), crop=8))


def with_conditions(stage, kind: str):
    """With the recipe's conditions: a system that was loaded has them too."""
    return dataclasses.replace(stage, conditions=getattr(recipes, kind)().stage().conditions)


def with_network(stage, **fields):
    """With other fields of its network."""
    return dataclasses.replace(stage, network=dataclasses.replace(stage.network, **fields))


def with_condition(stage, tag: str, **fields):
    """With other fields of one of its conditions."""
    conditions = [dataclasses.replace(each, **fields) if each.TAG[1] == tag else each for each in stage.conditions]
    return dataclasses.replace(stage, conditions=tuple(conditions))


@functools.cache
def compiled_loss(kind: str):
    """(params, frozen, batch, keys) -> (loss, metrics)."""
    stage = example(kind).stage
    return jax.jit(lambda params, frozen, batch, keys: stage.loss(params, params, frozen, batch, keys))


def keys(count: int = BATCH, seed: int = 0) -> jax.Array:
    return example_keys(seed, jnp.int32(5), jnp.arange(count))


def conditions(stage, params, frozen, batch, keys) -> list[Any]:
    """What `stage.loss` conditions its network on (which predicts zeros here), call by call."""

    @jax.jit
    def run(params, frozen, batch, keys):
        seen = []

        def apply(spec, params, x_t, time, cond, dropout_keys=None):
            seen.append(cond)
            return jnp.zeros((*x_t.shape[:-1], x_t.shape[-1] * (1 + spec.learns_variance)))

        with mock.patch.object(type(stage.network), "apply", apply):
            stage.loss(params, params, frozen, batch, keys)
        return seen

    return run(params, frozen, batch, keys)


@functools.cache
def encoders():
    """CLIP's towers, compiled: (images in bytes -> z_i, tokens -> TextFeatures)."""
    encoder = tiny.system().encoder("clip")
    image = jax.jit(lambda pixels: encoder.encode_image(to_float(pixels)))
    return image, jax.jit(encoder.encode_text)
