import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.training.stages.examples import BATCH, conditions, example, keys
from train.recipes import tiny as recipes
from unclip_jax import cascade
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.noise import KeyNoise
from unclip_jax.images.degrade import LowRes
from unclip_jax.images.pixels import to_float
from unclip_jax.models import unet

pytestmark = pytest.mark.usefixtures("quick_compile")


def told(low_res):
    stage, params, frozen, batch = example("upsampler")
    stage = dataclasses.replace(stage, low_res=low_res)
    (cond,) = conditions(unet, stage, params, frozen, batch, keys())
    return cond.low_res


def test_training_and_sampling_enlarge_alike(monkeypatch):
    low_res = LowRes(scale=2, degradation="none")
    x_low = low_res.from_high(to_float(example("upsampler").batch["image_crop"]), keys())
    seen = []

    def sample(process, model_fn, cond, sampler, noise, *, shape, x_T, threshold):
        seen.append(cond.low_res)
        return jnp.zeros(shape)

    monkeypatch.setattr(cascade, "sample", sample)
    part = tiny.bundle().part("upsampler_0")
    part = dataclasses.replace(part, spec=dataclasses.replace(part.spec, image_size=8), low_res_size=4)
    noise = KeyNoise(key=jax.random.key(0), indices=jnp.arange(BATCH))
    with jax.disable_jit():
        cascade.upsample(part, x_low, noise, cascade.StageSettings(steps=2))
    assert seen[0].shape == (BATCH, 8, 8, 3)
    # Compiled and not: sums may round otherwise.
    np.testing.assert_allclose(told(low_res), seen[0], atol=1e-6)


def test_training_degrades_the_condition():
    difference = told(LowRes(scale=2, degradation="blur")) - told(LowRes(scale=2, degradation="none"))
    assert np.abs(difference).max() > 0.01


@pytest.mark.parametrize(("fraction", "crop"), [(0.5, 8), (0.25, 4), (1.0, 16)])
def test_crop(fraction, crop):
    assert dataclasses.replace(recipes.upsampler(), crop_fraction=fraction).crop == crop


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.5])
def test_crops_that_do_not_fit(fraction):
    config = dataclasses.replace(recipes.upsampler(), crop_fraction=fraction)
    with pytest.raises(UserError, match=f"crop_fraction {fraction} of 16 px .* a multiple of 2"):
        _ = config.crop
