import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.reference import random_params
from tests.sample.helpers import tiles
from tests.training.stages.examples import BATCH, conditions, encoders, example, keys
from tests.training.stages.test_common import assert_share
from unclip_jax.models import unet
from unclip_jax.training.stages import decoder

pytestmark = pytest.mark.usefixtures("quick_compile")

MANY = 4000


def test_drop_rates_are_the_configs():
    stage, params, frozen, batch = example("decoder")
    repeated = {name: jnp.repeat(x, MANY // BATCH, axis=0) for name, x in batch.items()}
    (told,) = conditions(unet, stage, params, frozen, repeated, keys(MANY))
    image, text = np.asarray(told.drop_image), np.asarray(told.drop_text)
    # The paper's, and the recipe's: a tenth without z_i, half without caption, independently.
    assert_share(image, 0.1)
    assert_share(text, 0.5)
    assert_share(image & text, 0.05)


def test_the_network_is_told_z_i_of_the_same_image_and_its_caption():
    stage, params, frozen, batch = example("decoder")
    (told,) = conditions(unet, stage, params, frozen, batch, keys())
    encode_image, _ = encoders()
    np.testing.assert_allclose(told.z_i, encode_image(batch["image_16"]), atol=1e-6)
    np.testing.assert_array_equal(told.tokens, batch["tokens"])
    np.testing.assert_array_equal(told.mask, batch["mask"])
    assert told.hidden is None and told.low_res is None


def test_caption_as_hidden_states():
    stage, params, frozen, batch = example("decoder")
    spec = dataclasses.replace(stage.spec, text=None, text_width=stage.clip_spec.text.width)
    (told,) = conditions(unet, dataclasses.replace(stage, spec=spec), params, frozen, batch, keys())
    text = encoders()[1](batch["tokens"])
    np.testing.assert_allclose(told.hidden, text.hidden, atol=1e-5)
    np.testing.assert_allclose(told.z_t, text.z_t, atol=1e-6)
    assert told.tokens is None and told.drop_text.shape == (BATCH,)


def test_no_caption():
    stage, params, frozen, batch = example("decoder")
    spec = dataclasses.replace(stage.spec, text=None)
    (told,) = conditions(unet, dataclasses.replace(stage, spec=spec), params, frozen, batch, keys())
    assert told.tokens is None and told.hidden is None and told.drop_text is None
    assert told.z_i.shape == (BATCH, 16)


def test_the_preview_of_a_decoder_that_inpaints_shows_it_inpainting():
    stage, _, frozen, batch = example("decoder")
    spec = dataclasses.replace(stage.spec, inpaints=True, dropout=0.0)
    stage = dataclasses.replace(stage, spec=spec)
    params = random_params(unet.abstract_params(spec))
    preview = decoder.sample_preview(stage, lambda start: (each for each in [jax.tree.map(np.asarray, batch)]))
    sheet = preview(params, frozen, 1)
    real, whole, with_hole, filled = tiles(sheet, 8)
    assert sheet.shape == (4 * 10 - 2, 8 * 10 - 2, 3)
    np.testing.assert_array_equal(real, batch["image_8"][:8])
    hole = (with_hole != real).any(-1)
    assert (with_hole[hole] == 128).all() and 0.1 < hole.mean() < 0.9
    np.testing.assert_array_equal(filled[~hole], real[~hole])
    # In the hole it draws anew, and other than without what is around it.
    assert (filled[hole] != real[hole]).mean() > 0.5 and (filled[hole] != whole[hole]).mean() > 0.5
