"""A cascade whose networks were trained to inpaint; tests/sample/test_inpaint_command has one whose were not."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unclip_jax import cascade
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.samplers.repaint import Resampling
from unclip_jax.editing import inpainting
from unclip_jax.editing.inpainting import inpaint
from unclip_jax.editing.points import tokenise
from unclip_jax.models import unet
from unclip_jax.stages.settings import StageSettings

pytestmark = pytest.mark.usefixtures("quick_compile")

SIZES = {"decoder": 8, "upsampler_0": 16}


@pytest.fixture(scope="module")
def bundle():
    """The tiny cascade, its pixel networks with random weights for what is known."""
    parts = dict(tiny.bundle().parts)
    for seed, name in enumerate(SIZES):
        part = dataclasses.replace(parts[name], spec=dataclasses.replace(parts[name].spec, inpaints=True))
        parts[name] = tiny.weights(part, 10 + seed)
    return dataclasses.replace(tiny.bundle(), parts=parts)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.tanh(np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)))


HOLE = jnp.zeros((2, 16, 16), bool).at[0, 3:9, 4:11].set(True).at[1, :, 8:].set(True)
STEPS = {"decoder": StageSettings(steps=2), "upsampler_0": StageSettings(sampler="dpm++", steps=2)}


def told(bundle):
    z_i = jax.random.normal(jax.random.key(1), (2, 16))
    return z_i, *tokenise(bundle, ["a red circle", "a blue square"])


def fill(bundle, images, hole=HOLE, **options):
    options = {"settings": STEPS, "resampling": Resampling(times=1)} | options
    drawn = inpaint(bundle, images, hole, *told(bundle), jax.random.key(0), **options)
    return {each.part: np.asarray(each.value) for each in drawn}


def test_known_pixels_stay_and_what_is_in_the_hole_has_no_effect(bundle, images):
    drawn = fill(bundle, images)
    np.testing.assert_array_equal(drawn["upsampler_0"][~HOLE], np.asarray(images)[~HOLE])
    assert np.abs(drawn["upsampler_0"][HOLE] - np.asarray(images)[HOLE]).mean() > 0.1
    other = fill(bundle, jnp.where(HOLE[..., None], -images, images))
    for name in SIZES:
        np.testing.assert_array_equal(drawn[name], other[name])
    # What is around it does have one.
    around = fill(bundle, images.at[0, 0:3].add(0.3))
    assert np.abs(around["upsampler_0"][0] - drawn["upsampler_0"][0])[np.asarray(HOLE[0])].max() > 1e-3


def test_each_network_is_told_what_is_known_at_its_size(bundle, images):
    seen = {}

    def apply(spec, params, x_t, t, cond):
        seen[spec.image_size] = cond.known
        return jnp.zeros((*x_t.shape[:-1], 3 * (1 + spec.learned_sigma)))

    with mock.patch.object(unet, "apply", apply), jax.disable_jit():
        fill(bundle, images)
        assert set(seen) == {8, 16}
        # A small pixel of which any part lies in the hole counts as hole.
        expected = np.zeros((8, 8))
        expected[1:5, 2:6] = 1
        np.testing.assert_array_equal(seen[8][0, ..., 3], expected)
        np.testing.assert_array_equal(seen[16][..., 3], HOLE)
        np.testing.assert_array_equal(seen[16][..., :3], np.where(HOLE[..., None], 0, images))
        # Whole images know nothing of themselves.
        list(cascade.decode(bundle, *told(bundle), jax.random.key(0), settings=STEPS))
        for size in SIZES.values():
            np.testing.assert_array_equal(seen[size], np.broadcast_to([0, 0, 0, 1], (2, size, size, 4)))


def test_repaint_takes_single_steps_and_an_upsampler_that_inpaints_any(bundle, images):
    fast = {name: StageSettings(sampler="dpm++", steps=2, spacing="trailing") for name in SIZES}
    with pytest.raises(UserError, match="decoder: sampler is dpm.., which cannot inpaint; set it to ddim or ddpm"):
        fill(bundle, images, settings=fast)
    ddim = StageSettings(sampler="ddim", steps=50)
    assert inpainting.suited(bundle, fast) == {"decoder": ddim, "upsampler_0": fast["upsampler_0"]}
    assert inpainting.suited(tiny.bundle(), fast) == {"decoder": ddim, "upsampler_0": ddim}
    assert inpainting.suited(tiny.bundle(), {"prior": fast["decoder"]}) == {"prior": fast["decoder"]}
    few = {"decoder": StageSettings(sampler="ddpm", steps=3)}
    assert inpainting.suited(bundle, few) == few
