import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.training.stages.examples import BATCH, DIFFUSION, compiled_loss, conditions, example, keys
from unclip_jax import bundle as bundles
from unclip_jax.core.errors import UserError
from unclip_jax.images.pixels import to_float
from unclip_jax.models import unet
from unclip_jax.models.clip import TextSpec
from unclip_jax.training.stages import common
from unclip_jax.training.stages.common import DataConfig, FrozenCLIP

pytestmark = pytest.mark.usefixtures("quick_compile")

MANY = 20_000


@functools.cache
def many_keys():
    return keys(MANY)


def assert_share(flags, expected):
    """Within four standard deviations of a binomial's mean."""
    assert abs(np.mean(flags) - expected) < 4 * np.sqrt(expected * (1 - expected) / len(flags))


@pytest.mark.parametrize("kind", ["decoder", "upsampler"])
def test_a_network_that_inpaints_is_told_the_image_but_for_a_hole(kind):
    stage, params, frozen, batch = example(kind)
    stage = dataclasses.replace(stage, spec=dataclasses.replace(stage.spec, inpaints=True), drop_known=0.3)
    repeated = {name: jnp.repeat(x, 50, axis=0) for name, x in batch.items()}
    (told,) = conditions(unet, stage, params, frozen, repeated, keys(50 * BATCH))
    known, hole = np.asarray(told.known[..., :3]), np.asarray(told.known[..., 3])
    x_0 = np.asarray(to_float(repeated["image_crop" if kind == "upsampler" else "image_8"]))
    assert set(np.unique(hole)) == {0, 1}
    np.testing.assert_array_equal(known, np.where(hole[..., None] == 1, 0, x_0))
    whole = hole.all(axis=(1, 2))
    assert_share(whole, 0.3)
    # Independent of everything else that is drawn for an example.
    if kind == "decoder":
        assert_share(whole & np.asarray(told.drop_image), 0.3 * stage.drop_image)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_drop_rate(rate):
    assert_share(common.draw_drop(many_keys(), rate, common.DROP_IMAGE), rate)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_never_and_always(rate):
    assert set(np.asarray(common.draw_drop(many_keys(), rate, common.DROP_CAPTION)).tolist()) == {bool(rate)}


def test_conditions_are_dropped_independently():
    image = np.asarray(common.draw_drop(many_keys(), 0.5, common.DROP_IMAGE))
    caption = np.asarray(common.draw_drop(many_keys(), 0.5, common.DROP_CAPTION))
    assert_share(image & caption, 0.25)


def test_timesteps_are_uniform():
    t = np.asarray(common.draw_timesteps(many_keys(), 10))
    assert sorted(set(t.tolist())) == list(range(10))
    for step in range(10):
        assert_share(t == step, 0.1)


def test_noise_is_standard_normal():
    noise = np.asarray(common.draw_noise(many_keys(), (5,)))
    assert noise.shape == (MANY, 5)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size) and abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.size)


def test_quarters_partition_the_batch():
    t = jnp.arange(100)
    metrics = common.diffusion_metrics({"mse": jnp.ones(100), "vlb": jnp.ones(100)}, t, 100)
    assert set(metrics) == {"mse", "vlb", "mse_q0", "mse_q1", "mse_q2", "mse_q3"}
    quarters = np.stack([np.asarray(metrics[f"mse_q{i}"][1]) for i in range(4)])
    np.testing.assert_array_equal(quarters, np.arange(100) // 25 == np.arange(4)[:, None])


@pytest.mark.parametrize("kind", DIFFUSION)
def test_loss_of_an_example_is_its_own(kind):
    stage, params, frozen, batch = example(kind)
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
    stage, params, frozen, batch = example(kind)
    first, _ = compiled_loss(kind)(params, frozen, batch, keys())
    second, _ = compiled_loss(kind)(params, frozen, batch, keys(seed=1))
    assert (np.asarray(first) != np.asarray(second)).all()


def test_own_caption_encoder_reads_the_tokens_of_the_clip():
    own = TextSpec(vocab_size=7, context=3, width=24, depth=2, heads=3, eos_id=0)
    text, theirs = common.reading(own, tiny.frozen_clip().spec), tiny.frozen_clip().spec.text
    assert (text.vocab_size, text.eos_id, text.context) == (theirs.vocab_size, theirs.eos_id, theirs.context)
    assert (text.width, text.depth, text.heads) == (own.width, own.depth, own.heads)


def test_clip_from_a_bundle(tiny_folder):
    loaded, kept = FrozenCLIP.load(str(tiny_folder)), tiny.frozen_clip()
    assert (loaded.spec, loaded.tokenizer, loaded.identity) == (kept.spec, kept.tokenizer, kept.identity)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, kept.params)


def test_identity_survives_fewer_bits(tiny_bundle, tmp_path):
    alone = dataclasses.replace(tiny_bundle, parts={"clip": tiny_bundle.part("clip")}, sampling={}, stats=None)
    bundles.save(alone, tmp_path / "half", dtype="float16")
    assert FrozenCLIP.load(str(tmp_path / "half")).identity == tiny.frozen_clip().identity


def test_no_clip_is_refused(tiny_bundle, tmp_path):
    with pytest.raises(UserError, match="no CLIP given; set --clip to the workdir"):
        FrozenCLIP.load("")
    with pytest.raises(UserError, match="no bundle nowhere"):
        FrozenCLIP.load("nowhere")
    part = tiny_bundle.part("upsampler_0")
    bundles.save(bundles.Bundle(name="up", parts={"upsampler_0": part}), tmp_path / "up")
    with pytest.raises(UserError, match="bundle up has no part clip"):
        FrozenCLIP.load(str(tmp_path / "up"))


def test_images_alone_need_no_captions(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    Image.fromarray(tiny.records()[0].image).save(tmp_path / "photos" / "x.png")
    data = DataConfig(source=str(tmp_path / "photos"), batch_size=1)
    assert data.open(captions=False)[0].caption == ""
    with pytest.raises(UserError, match="1 images and no captions"):
        data.open(captions=True)


def test_weights_to_start_from(tiny_folder, tiny_bundle):
    assert common.load_start("", "decoder") is None
    spec = tiny_bundle.part("upsampler_0").spec
    found = common.load_start(str(tiny_folder), "upsampler", spec)
    for ours, stored in zip(
        jax.tree.leaves(found), jax.tree.leaves(tiny_bundle.part("upsampler_0").params), strict=True
    ):
        np.testing.assert_array_equal(ours, stored)
    with pytest.raises(UserError, match="has no such upsampler"):
        common.load_start(str(tiny_folder), "upsampler", dataclasses.replace(spec, image_size=32))


def test_a_network_that_inpaints_starts_from_one_that_does_not(tiny_folder, tiny_bundle):
    part = tiny_bundle.part("decoder")
    spec = dataclasses.replace(part.spec, inpaints=True)
    found = common.load_start(str(tiny_folder), "decoder", spec)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(lambda leaf: leaf.shape, unet.abstract_params(spec))
    np.testing.assert_array_equal(found["conv_in"]["kernel"][:, :, :3], part.params["conv_in"]["kernel"])


def test_a_part_of_several_networks_is_no_start(tiny_bundle, tmp_path):
    part = tiny_bundle.part("upsampler_0")
    experts = dataclasses.replace(part, experts=(1,), params={f"expert_{i}": part.params for i in range(2)})
    bundles.save(dataclasses.replace(tiny_bundle, parts=tiny_bundle.parts | {"upsampler_0": experts}), tmp_path / "x")
    with pytest.raises(UserError, match="upsampler_0 of bundle .* is several networks"):
        common.load_start(str(tmp_path / "x"), "upsampler", part.spec)
