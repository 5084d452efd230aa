"""Each stage with random weights, a batch for it, and its compiled loss."""

import dataclasses
import functools
from typing import Any, NamedTuple, cast
from unittest import mock

import jax
import jax.numpy as jnp

from tests import tiny
from train.recipes import tiny as recipes
from unclip_jax.diffusion.gaussian import Process, ProcessSpec
from unclip_jax.images.pixels import to_float
from unclip_jax.models import clip
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.training.stages.clip import CLIPStage
from unclip_jax.training.stages.decoder import DecoderStage
from unclip_jax.training.stages.prior import PriorStage
from unclip_jax.training.stages.upsampler import UpsamplerStage
from unclip_jax.training.step import example_keys

BATCH = 16
DIFFUSION = ("prior", "decoder", "upsampler")


class Example(NamedTuple):
    """What `stage.loss` takes, but the keys."""

    stage: Any
    params: Any
    frozen: Any
    batch: dict[str, jax.Array]


def batch(**options) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, tiny.batch(BATCH, **options))


def process(name: str) -> Process:
    return cast(ProcessSpec, tiny.bundle().part(name).process).build()


@functools.cache
def example(kind: str) -> Example:
    """The stage of recipe tiny."""
    clip_part = tiny.bundle().part("clip")
    part = tiny.bundle().part("upsampler_0" if kind == "upsampler" else kind)
    spec: Any = part.spec
    frozen: dict[str, Any] = {"clip": clip_part.params}
    clip_spec = cast(CLIPSpec, clip_part.spec)
    if kind == "clip":
        return Example(CLIPStage(clip_spec), clip_part.params, {}, batch())
    if kind == "prior":
        stage = PriorStage(spec, process("prior"), clip_spec, recipes.prior().drop_caption, "none")
        frozen["stats"] = tiny.bundle().stats
        return Example(stage, part.params, frozen, batch())
    # One level, to compile sooner; with dropout, which has to be an example's own too.
    attention_at = (8,) if kind == "decoder" else ()
    spec = dataclasses.replace(spec, channel_mult=(1,), attention_at=attention_at, dropout=0.3)
    part = tiny.weights(dataclasses.replace(part, spec=spec), 7)
    if kind == "decoder":
        config = recipes.decoder()
        stage = DecoderStage(
            spec, process("decoder"), clip_spec, config.drop_image, config.drop_caption, config.drop_known, "min_snr"
        )
        return Example(stage, part.params, frozen, batch())
    config = recipes.upsampler()
    stage = UpsamplerStage(spec, process("upsampler_0"), config.low_res, config.drop_known, "min_snr")
    return Example(stage, part.params, {}, batch(sizes=(16,), crop=8))


@functools.cache
def compiled_loss(kind: str):
    return jax.jit(example(kind).stage.loss)


def keys(count: int = BATCH, seed: int = 0) -> jax.Array:
    return example_keys(seed, jnp.int32(5), jnp.arange(count))


def conditions(network, stage, params, frozen, batch, keys) -> list[Any]:
    """What `stage.loss` tells its network (the module `network`, which predicts zeros here), call by call."""

    @jax.jit
    def run(params, frozen, batch, keys):
        seen = []

        def apply(spec, params, x_t, t, cond, dropout_keys=None):
            seen.append(cond)
            channels = x_t.shape[-1] * (1 + getattr(spec, "learned_sigma", False))
            return jnp.zeros((*x_t.shape[:-1], channels))

        with mock.patch.object(network, "apply", apply):
            stage.loss(params, frozen, batch, keys)
        return seen

    return run(params, frozen, batch, keys)


@functools.cache
def encoders():
    """CLIP's towers, compiled: (images in bytes -> z_i, tokens -> TextFeatures)."""
    part = tiny.bundle().part("clip")
    spec = cast(CLIPSpec, part.spec)
    image = jax.jit(lambda pixels: clip.encode_image(spec, part.params, to_float(pixels)))
    text = jax.jit(lambda tokens: clip.encode_text(spec, part.params, tokens))
    return image, text
