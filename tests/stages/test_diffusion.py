import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages.examples import (
    BATCH,
    DIFFUSION,
    compiled_loss,
    conditions,
    encoders,
    example,
    keys,
    with_condition,
    with_network,
)
from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.pixels import to_float
from unclip_jax.stages import random
from unclip_jax.stages.stage import Stage

pytestmark = pytest.mark.usefixtures("quick_compile")

MANY = 20_000


@functools.cache
def many_keys():
    return keys(MANY)


def assert_share(flags, expected):
    """Within four standard deviations of a binomial's mean."""
    assert abs(np.mean(flags) - expected) < 4 * np.sqrt(expected * (1 - expected) / len(flags))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "upsampler"])
def test_an_inpainting_network_is_conditioned_on_the_masked_image(kind):
    stage, params, frozen, batch = example(kind)
    stage = with_condition(with_network(stage, inpainting=True), "inpaint_mask", full_rate=0.3)
    repeated = {name: jnp.repeat(x, 50, axis=0) for name, x in batch.items()}
    (cond,) = conditions(stage, params, frozen, repeated, keys(50 * BATCH))
    known, mask = np.asarray(cond.masked_image[..., :3]), np.asarray(cond.masked_image[..., 3])
    x_0 = np.asarray(to_float(repeated["image_crop" if kind == "upsampler" else "image_8"]))
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_array_equal(known, np.where(mask[..., None] == 1, 0, x_0))
    full = mask.all(axis=(1, 2))
    assert_share(full, 0.3)
    # Independent of everything else that is random for an example.
    if kind == "decoder":
        assert_share(full & np.asarray(cond.drop_z_i), 0.3 * 0.1)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_drop_rate(rate):
    assert_share(random.random_drop(many_keys(), rate, random.DROP_Z_I), rate)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_never_and_always(rate):
    assert set(np.asarray(random.random_drop(many_keys(), rate, random.DROP_TEXT)).tolist()) == {bool(rate)}


def test_conditions_are_dropped_independently():
    image = np.asarray(random.random_drop(many_keys(), 0.5, random.DROP_Z_I))
    caption = np.asarray(random.random_drop(many_keys(), 0.5, random.DROP_TEXT))
    assert_share(image & caption, 0.25)


def test_streams_have_the_numbers_that_they_always_had():
    """Another number, and a run goes on with other noise."""
    names = ("TIME", "NOISE", "DROP_Z_I", "DROP_TEXT", "DEGRADE", "DROPOUT", "MASK")
    assert [getattr(random, name) for name in names] == list(range(7))


def test_timesteps_are_uniform():
    process = ProcessSpec(num_steps=10).build()
    t = np.asarray(process.random_time(random.stream(many_keys(), random.TIME)))
    assert sorted(set(t.tolist())) == list(range(10))
    for step in range(10):
        assert_share(t == step, 0.1)


def test_noise_is_standard_normal():
    noise = np.asarray(random.random_noise(many_keys(), (5,)))
    assert noise.shape == (MANY, 5)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size) and abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DIFFUSION)
def test_loss_of_an_example_is_its_own(kind):
    _stage, params, frozen, batch = example(kind)
    loss, row = compiled_loss(kind), 5
    own, metrics = loss(params, frozen, batch, keys())
    others = np.arange(BATCH) != row
    changed = {
        name: jnp.where(others.reshape(-1, *[1] * (x.ndim - 1)), jnp.roll(x, 3, axis=0), x) for name, x in batch.items()
    }
    other_keys = jnp.where(others, keys(seed=1), keys())
    again, _ = loss(params, frozen, changed, other_keys)
    assert np.isfinite(own).all() and own.shape == (BATCH,)
    assert again[row] == own[row] and (np.asarray(again) != np.asarray(own))[others].all()
    quarters = sum(np.asarray(metrics[f"mse_q{i}"][1]) for i in range(4))
    np.testing.assert_array_equal(quarters, np.ones(BATCH))


@pytest.mark.parametrize("kind", DIFFUSION)
def test_loss_depends_on_the_key(kind):
    _stage, params, frozen, batch = example(kind)
    first, _ = compiled_loss(kind)(params, frozen, batch, keys())
    second, _ = compiled_loss(kind)(params, frozen, batch, keys(seed=1))
    assert (np.asarray(first) != np.asarray(second)).all()


def test_embeddings_that_data_bring_need_no_towers():
    """The loss is the same as with the towers; nothing of CLIP's is asked for but what the space itself needs."""
    stage, params, frozen, batch = example("prior")
    own, _ = compiled_loss("prior")(params, frozen, batch, keys())
    encode_image, encode_text = encoders()
    text = encode_text(batch["tokens"])
    brought = {"z_i": encode_image(batch["image_16"]), "z_t": text.z_t, "hidden": text.hidden, "mask": batch["mask"]}
    loss, _ = jax.jit(lambda params, batch: stage.loss(params, params, {"stats": frozen["stats"]}, batch, keys()))(
        params, brought
    )
    np.testing.assert_allclose(loss, own, rtol=1e-5)


@pytest.mark.parametrize("kind", [*DIFFUSION, "clip"])
def test_a_stage_goes_to_json_and_back(kind):
    stage = example(kind).stage
    again = from_json(Stage, json.loads(json.dumps(to_json(stage))), "stage")
    assert again == stage and hash(again) == hash(stage)


def test_a_stage_that_does_not_fit_its_network():
    stage = example("decoder").stage
    with pytest.raises(UserError, match="learned_sigma is True but its process has variance 'small'"):
        dataclasses.replace(stage, process=ProcessSpec(num_steps=100)).check()
    with pytest.raises(UserError, match="the network wants a low-resolution image, .*; only upsamplers have one"):
        with_network(stage, low_res=True).check()
    with pytest.raises(UserError, match="the network takes no low-resolution image; set low_res"):
        with_network(example("upsampler").stage, low_res=False).check()
