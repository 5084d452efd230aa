import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.helpers import CLIP, DECODER, PRIOR, TEXT, params_of
from unclip_jax import conditioning
from unclip_jax.models import clip, prior, unet

TOKENS = jnp.array([[1, 7, 2, 0, 0], [1, 9, 4, 5, 2]])
MASK = TOKENS > 0
Z_I = jax.random.normal(jax.random.key(0), (2, 6))
CLIP_PARAMS = params_of(CLIP)
HIDDEN_DECODER = dataclasses.replace(DECODER, text=None, text_width=CLIP.text.width)
T = jnp.array([5, 700])


@pytest.fixture(scope="module")
def text():
    return clip.encode_text(CLIP, CLIP_PARAMS, TOKENS)


def prior_cond(spec):
    return conditioning.prior_cond(spec, CLIP, CLIP_PARAMS, TOKENS, MASK)


def decoder_cond(spec):
    return conditioning.decoder_cond(spec, CLIP, CLIP_PARAMS, Z_I, TOKENS, MASK)


def told(cond):
    return {name for name, value in vars(cond).items() if value is not None}


def test_what_is_known_of_an_image():
    images = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    hole = jnp.zeros((2, 4, 4), bool).at[1, 1:3, 2].set(True)
    known = np.asarray(conditioning.known_part(images, hole))
    np.testing.assert_array_equal(known[..., 3], hole)
    np.testing.assert_array_equal(known[~hole][:, :3], images[~hole])
    np.testing.assert_array_equal(known[hole], np.tile([0, 0, 0, 1], (2, 1)))


def test_of_a_whole_image_nothing_is_known():
    cond = unet.UNetCond(z_i=Z_I)
    assert conditioning.drawing_whole(DECODER, cond, 2) is cond
    known = conditioning.drawing_whole(dataclasses.replace(DECODER, inpaints=True), cond, 2).known
    np.testing.assert_array_equal(known, np.broadcast_to([0, 0, 0, 1], (2, 8, 8, 4)))


def test_a_prior_reads_clips_hidden_states(text):
    cond = prior_cond(PRIOR)
    assert told(cond) == {"z_t", "mask", "drop", "hidden"}
    np.testing.assert_array_equal(cond.z_t, text.z_t)
    np.testing.assert_array_equal(cond.hidden, text.hidden)
    np.testing.assert_array_equal(cond.mask, MASK)
    assert not cond.drop.any() and cond.drop.shape == (2,)


def test_a_prior_with_an_encoder_reads_tokens_and_z_t(text):
    cond = prior_cond(dataclasses.replace(PRIOR, text=TEXT))
    assert told(cond) == {"z_t", "mask", "drop", "tokens"}
    np.testing.assert_array_equal(cond.z_t, text.z_t)
    np.testing.assert_array_equal(cond.tokens, TOKENS)


def test_a_decoder_with_an_encoder_reads_tokens():
    cond = decoder_cond(DECODER)
    assert told(cond) == {"z_i", "drop_image", "tokens", "mask", "drop_text"}
    np.testing.assert_array_equal(cond.tokens, TOKENS)
    np.testing.assert_array_equal(cond.z_i, Z_I)
    np.testing.assert_array_equal(cond.mask, MASK)
    assert not cond.drop_image.any() and not cond.drop_text.any()


def test_a_decoder_without_one_reads_clips_hidden_states_and_z_t(text):
    cond = decoder_cond(HIDDEN_DECODER)
    assert told(cond) == {"z_i", "drop_image", "hidden", "z_t", "mask", "drop_text"}
    np.testing.assert_array_equal(cond.hidden, text.hidden)
    np.testing.assert_array_equal(cond.z_t, text.z_t)


def test_a_decoder_without_a_caption_reads_z_i_alone():
    assert told(decoder_cond(dataclasses.replace(DECODER, text=None))) == {"z_i", "drop_image"}


@pytest.mark.parametrize("spec", [PRIOR, dataclasses.replace(PRIOR, text=TEXT)])
def test_the_prior_takes_it(spec):
    cond = prior_cond(spec)
    out = jax.eval_shape(lambda *args: prior.apply(spec, *args), prior.abstract_params(spec), Z_I, T, cond)
    assert out.shape == (2, 6)


@pytest.mark.parametrize("spec", [DECODER, HIDDEN_DECODER, dataclasses.replace(DECODER, text=None)])
def test_the_decoder_takes_it(spec):
    shapes = unet.abstract_params(spec)
    out = jax.eval_shape(
        lambda params, *args: unet.apply(spec, params, *args), shapes, jnp.zeros((2, 8, 8, 3)), T, decoder_cond(spec)
    )
    assert out.shape == (2, 8, 8, 6)
