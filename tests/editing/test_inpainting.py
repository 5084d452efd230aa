"""A system whose networks were trained to inpaint; tests/sample/test_inpaint_command has one whose were not."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.samplers.repaint import Resampling
from unclip_jax.editing.embeddings import tokenise
from unclip_jax.editing.inpainting import inpaint, with_inpainting_sampler
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems.system import run

pytestmark = pytest.mark.usefixtures("quick_compile")

SIZES = {"decoder": 8, "upsampler_0": 16}


@pytest.fixture(scope="module")
def system():
    """The tiny system, its pixel networks with random weights for what is known."""
    found = tiny.system()
    for seed, name in enumerate(SIZES):
        found = tiny.with_stage(name, 10 + seed, found, inpainting=True)
    return found


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.tanh(np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)))


MASK = jnp.zeros((2, 16, 16), bool).at[0, 3:9, 4:11].set(True).at[1, :, 8:].set(True)
STEPS = {"decoder": SamplingSettings(steps=2), "upsampler_0": SamplingSettings(sampler="dpm++", steps=2)}


def inputs_of(system):
    captions = jax.tree.map(jnp.asarray, tokenise(system, ["a red circle", "a blue square"]))
    return {"z_i": jax.random.normal(jax.random.key(1), (2, 16)), **captions}


def fill(system, images, mask=MASK, **options):
    options = {"settings": STEPS, "resampling": Resampling(times=1)} | options
    outputs = inpaint(system, images, mask, inputs_of(system), jax.random.key(0), **options)
    return {each.stage: np.asarray(each.value) for each in outputs}


@pytest.mark.slow
def test_known_pixels_stay_and_what_is_under_the_mask_has_no_effect(system, images):
    filled = fill(system, images)
    assert list(filled) == list(SIZES)
    np.testing.assert_array_equal(filled["upsampler_0"][~MASK], np.asarray(images)[~MASK])
    assert np.abs(filled["upsampler_0"][MASK] - np.asarray(images)[MASK]).mean() > 0.1
    other = fill(system, jnp.where(MASK[..., None], -images, images))
    for name in SIZES:
        np.testing.assert_array_equal(filled[name], other[name])
    # What is around it does have one.
    around = fill(system, images.at[0, 0:3].add(0.3))
    assert np.abs(around["upsampler_0"][0] - filled["upsampler_0"][0])[np.asarray(MASK[0])].max() > 1e-3


@pytest.mark.slow
def test_each_network_is_conditioned_on_what_is_known_at_its_size(system, images):
    seen = {}

    def apply(spec, params, x_t, time, cond, dropout_keys=None):
        seen[spec.image_size] = cond.masked_image
        return jnp.zeros((*x_t.shape[:-1], 3 * (1 + spec.learned_sigma)))

    with mock.patch.object(UNetSpec, "apply", apply), jax.disable_jit():
        fill(system, images)
        assert set(seen) == {8, 16}
        # A small pixel of which any part lies under the mask counts as masked.
        expected = np.zeros((8, 8))
        expected[1:5, 2:6] = 1
        np.testing.assert_array_equal(seen[8][0, ..., 3], expected)
        np.testing.assert_array_equal(seen[16][..., 3], MASK)
        np.testing.assert_array_equal(seen[16][..., :3], np.where(MASK[..., None], 0, images))
        # Whole images know nothing of themselves.
        list(run(system, inputs_of(system), jax.random.key(0), settings=STEPS))
        for size in SIZES.values():
            np.testing.assert_array_equal(seen[size], np.broadcast_to([0, 0, 0, 1], (2, size, size, 4)))


def test_repaint_takes_single_steps_and_an_upsampler_that_inpaints_any(system, images):
    fast = {name: SamplingSettings(sampler="dpm++", steps=2, spacing="trailing") for name in SIZES}
    with pytest.raises(UserError, match="decoder: sampler is dpm.., which cannot inpaint; set it to ddim or ddpm"):
        fill(system, images, settings=fast)
    ddim = SamplingSettings(sampler="ddim", steps=50)
    assert with_inpainting_sampler(system, fast) == {"decoder": ddim, "upsampler_0": fast["upsampler_0"]}
    assert with_inpainting_sampler(tiny.system(), fast) == {"decoder": ddim, "upsampler_0": ddim}
    prior = {"prior": fast["decoder"]}
    assert with_inpainting_sampler(tiny.system(), prior) == prior
    few = {"decoder": SamplingSettings(sampler="ddpm", steps=3)}
    assert with_inpainting_sampler(system, few) == few


def test_what_it_refuses(system, images):
    with pytest.raises(UserError, match="the mask marks nothing to draw; mark where to draw in white"):
        fill(system, images, MASK.at[0].set(False))
    with pytest.raises(ValueError, match=r"the last stage draws 16 x 16 px; got \(8, 8\)"):
        fill(system, images[:, :8, :8], MASK[:, :8, :8])
