import io
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers import assert_close
from unclip_jax.core.errors import UserError
from unclip_jax.images.degrade import LowRes, jpeg
from unclip_jax.images.resize import resize

KINDS: tuple[Literal["none", "blur", "bsr"], ...] = ("none", "blur", "bsr")


@pytest.fixture(scope="module")
def photos():
    """Four smooth 32 px images with an edge, in [-1, 1]."""
    coarse = jax.random.uniform(jax.random.key(3), (4, 6, 6, 3), minval=-1, maxval=1)
    return jnp.clip(resize(coarse, 32), -1, 1).at[:, 10:20, 5:25].multiply(-1)


def keys(n, seed=0):
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(n))


@pytest.fixture(scope="module")
def from_high():
    """Compiled once for each kind: bsr is four random image operations in a loop."""
    return {kind: jax.jit(LowRes(scale=2, degradation=kind).from_high) for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_range_and_determinism(photos, from_high, kind):
    low = from_high[kind](photos, keys(4))
    assert low.shape == (4, 16, 16, 3) and low.dtype == jnp.float32
    assert jnp.abs(low).max() <= 1
    np.testing.assert_array_equal(low, from_high[kind](photos, keys(4)))
    assert (from_high[kind](photos, keys(4, seed=1)) != low).any() == (kind == "bsr")


def test_an_example_depends_on_its_own_key_alone(photos, from_high):
    low = from_high["bsr"](photos, keys(4))
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_array_equal(from_high["bsr"](photos[order], keys(4)[order]), low[order])
    other_neighbours = from_high["bsr"](photos.at[1:].set(0), keys(4))
    np.testing.assert_array_equal(other_neighbours[0], low[0])
    assert (other_neighbours[1] != low[1]).any()


def test_each_key_degrades_in_its_own_way(photos, from_high):
    low = from_high["bsr"](jnp.broadcast_to(photos[:1], photos.shape), keys(4))
    clean = from_high["none"](photos, keys(4))[0]
    errors = jnp.abs(low - clean).mean(axis=(1, 2, 3))
    assert len(np.unique(np.asarray(errors))) == 4
    assert errors.min() > 0.005 and errors.max() < 0.5


def test_none_is_bicubic(photos, from_high):
    expected = jnp.clip(jax.image.resize(photos, (4, 16, 16, 3), "cubic", antialias=True), -1, 1)
    # Half the size: eight pixels along each axis.
    assert_close(from_high["none"](photos, keys(4)), expected, terms=16)


def test_blur_is_the_papers_gaussian(from_high):
    point = jnp.zeros((4, 16, 16, 3)).at[:, 8, 5].set(1.0)
    blurred = LowRes(scale=1, degradation="blur").from_high(point, keys(4))
    weight = np.exp(-0.5 * np.array([-1, 0, 1]) ** 2 / 0.6**2)
    expected = np.outer(weight, weight) / np.outer(weight, weight).sum()
    assert_close(blurred[2, 7:10, 4:7, 1], expected, terms=9)
    assert_close(blurred.sum(axis=(1, 2)), np.ones((4, 3)), terms=16 * 16)
    flat = jnp.full((4, 32, 32, 3), 0.25)
    assert_close(from_high["blur"](flat, keys(4)), np.full((4, 16, 16, 3), 0.25), terms=9 + 16)


@pytest.mark.slow
def test_strength_scales_the_damage(photos, from_high):
    clean = from_high["none"](photos, keys(4))
    full = from_high["bsr"](photos, keys(4))
    gentle = LowRes(scale=2, degradation="bsr", strength=0.0).from_high(photos, keys(4))
    assert jnp.abs(gentle - clean).mean() < min(0.03, jnp.abs(full - clean).mean() / 3)


def test_condition_is_bicubic_and_shared_by_training_and_sampling(photos, from_high):
    low_res = LowRes(scale=2, degradation="none")
    low = from_high["none"](photos, keys(4))
    condition = low_res.condition(low)
    assert condition.shape == photos.shape
    assert_close(condition, jax.image.resize(low, photos.shape, "cubic"), terms=8)
    for kind in ("blur", "bsr"):
        np.testing.assert_array_equal(LowRes(scale=2, degradation=kind).condition(low), condition)


def through_pillow(x, quality):
    buffer = io.BytesIO()
    image = Image.fromarray(np.rint((np.asarray(x) + 1) * 127.5).astype(np.uint8))
    image.save(buffer, "jpeg", quality=quality, subsampling=0)
    return np.asarray(Image.open(buffer)) / 127.5 - 1


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_jpeg_is_close_to_libjpeg(photos, quality):
    x = photos[0, :27, :22]  # not whole blocks
    ours, theirs = jax.jit(jpeg)(x, jnp.float32(quality)), through_pillow(x, quality)
    damage = np.abs(theirs - x).mean()
    assert np.abs(ours - theirs).mean() < 0.25 * damage + 1.5 / 255
    assert np.abs(np.abs(ours - x).mean() / damage - 1) < 0.2


def test_jpeg_gets_worse_with_lower_quality(photos):
    compressed = jax.vmap(jpeg, in_axes=(None, 0))(photos[1], jnp.array([100.0, 90, 70, 50, 30, 10]))
    errors = np.asarray(jnp.square(compressed - photos[1]).mean(axis=(1, 2, 3)))
    assert (np.diff(errors) > 0).all() and errors[0] < 1e-4


def test_what_makes_no_sense_is_refused(photos):
    for options, message in [
        ({"scale": 0}, "scale is 0"),
        ({"blur_kernel": 4}, "odd width"),
        ({"blur_sigma": 0.0}, "sigma > 0"),
        ({"strength": 1.5}, "strength is 1.5"),
    ]:
        with pytest.raises(UserError, match=message):
            LowRes(**options)
    with pytest.raises(UserError, match="do not shrink by 5"):
        LowRes(scale=5).from_high(photos, keys(4))
