import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.reference import random_params
from tests.stages.examples import BATCH, conditions, encoders, example, keys, with_network
from tests.stages.test_diffusion import assert_share
from unclip_jax.images.pixels import to_uint8
from unclip_jax.stages.stage import Weights

pytestmark = pytest.mark.usefixtures("quick_compile")

MANY = 4000


def test_drop_rates_are_the_configs():
    stage, params, frozen, batch = example("decoder")
    repeated = {name: jnp.repeat(x, MANY // BATCH, axis=0) for name, x in batch.items()}
    (cond,) = conditions(stage, params, frozen, repeated, keys(MANY))
    image, text = np.asarray(cond.drop_z_i), np.asarray(cond.drop_text)
    # The paper's, and the recipe's: a tenth without z_i, half without caption, independently.
    assert_share(image, 0.1)
    assert_share(text, 0.5)
    assert_share(image & text, 0.05)


def test_the_network_is_conditioned_on_z_i_of_the_same_image_and_its_caption():
    stage, params, frozen, batch = example("decoder")
    (cond,) = conditions(stage, params, frozen, batch, keys())
    encode_image, _ = encoders()
    np.testing.assert_allclose(cond.z_i, encode_image(batch["image_16"]), atol=1e-6)
    np.testing.assert_array_equal(cond.tokens, batch["tokens"])
    np.testing.assert_array_equal(cond.mask, batch["mask"])
    assert cond.hidden is None and cond.low_res is None


def test_caption_as_hidden_states():
    stage, params, frozen, batch = example("decoder")
    stage = with_network(stage, text=None, text_width=frozen["clip"].clip.text_tower.width)
    (cond,) = conditions(stage, params, frozen, batch, keys())
    text = encoders()[1](batch["tokens"])
    np.testing.assert_allclose(cond.hidden, text.hidden, atol=1e-5)
    np.testing.assert_allclose(cond.z_t, text.z_t, atol=1e-6)
    assert cond.tokens is None and cond.drop_text.shape == (BATCH,)


def test_no_caption():
    stage, params, frozen, batch = example("decoder")
    (cond,) = conditions(with_network(stage, text=None), params, frozen, batch, keys())
    assert cond.tokens is None and cond.hidden is None and cond.drop_text is None
    assert cond.z_i.shape == (BATCH, 16)


@pytest.mark.slow
def test_the_preview_of_a_decoder_that_inpaints_shows_it_inpainting():
    stage, _, frozen, batch = example("decoder")
    stage = with_network(stage, inpainting=True, dropout=0.0)
    params = random_params(stage.network.abstract_params())
    shown = jax.jit(lambda params, frozen, batch: stage.preview(Weights(params, frozen), batch))(params, frozen, batch)
    assert shown.names == ("images", "samples", "masked", "inpainted")
    real, sampled, masked, filled = map(to_uint8, shown.rows)
    np.testing.assert_array_equal(real, batch["image_8"])
    mask = (masked != real).any(-1)
    assert (masked[mask] == 128).all() and 0.1 < mask.mean() < 0.9
    np.testing.assert_array_equal(filled[~mask], real[~mask])
    # In the mask it draws anew, and other than without what is around it.
    assert (filled[mask] != real[mask]).mean() > 0.5 and (filled[mask] != sampled[mask]).mean() > 0.5
