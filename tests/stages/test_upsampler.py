import dataclasses

import numpy as np
import pytest

from tests.stages.examples import BATCH, conditions, example, keys, with_condition
from train.recipes import tiny as recipes
from unclip_jax.core.errors import UserError
from unclip_jax.images.degrade import LowRes
from unclip_jax.images.pixels import to_float
from unclip_jax.stages.stage import Weights

pytestmark = pytest.mark.usefixtures("quick_compile")


def conditioned(low_res):
    stage, params, frozen, batch = example("upsampler")
    stage = with_condition(stage, "low_res", low_res=low_res)
    (cond,) = conditions(stage, params, frozen, batch, keys())
    return cond.low_res


def test_training_and_sampling_enlarge_alike():
    low_res = LowRes(scale=2, degradation="none")
    x_low = low_res.from_high(to_float(example("upsampler").batch["image_crop"]), keys())
    stage = example("upsampler").stage
    small = dataclasses.replace(stage, network=dataclasses.replace(stage.network, image_size=8))
    cond = small.condition(Weights(params={}), {"image_4": x_low}, BATCH)
    assert small.reads == ("image_4",) and cond.low_res.shape == (BATCH, 8, 8, 3)
    # Compiled and not: sums may round otherwise.
    np.testing.assert_allclose(conditioned(low_res), cond.low_res, atol=1e-6)


def test_training_degrades_the_condition():
    difference = conditioned(LowRes(scale=2, degradation="blur")) - conditioned(LowRes(scale=2, degradation="none"))
    assert np.abs(difference).max() > 0.01


@pytest.mark.parametrize(("fraction", "crop"), [(0.5, 8), (0.25, 4), (1.0, 16)])
def test_crop(fraction, crop):
    assert dataclasses.replace(recipes.upsampler(), crop_fraction=fraction).crop == crop


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.5])
def test_crops_that_do_not_fit(fraction):
    config = dataclasses.replace(recipes.upsampler(), crop_fraction=fraction)
    with pytest.raises(UserError, match=f"crop_fraction {fraction} of 16 px .* a multiple of 2"):
        _ = config.crop
