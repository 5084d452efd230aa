import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.helpers import CLIP, DECODER, PRIOR, TEXT, params_of
from unclip_jax.models.cond import UNetCond
from unclip_jax.stages.conditions import Caption, CLIPImage, Condition, InpaintMask, inpaint_cond
from unclip_jax.stages.encoders import Encoder

TOKENS = jnp.array([[1, 7, 2, 0, 0], [1, 9, 4, 5, 2]])
MASK = TOKENS > 0
Z_I = jax.random.normal(jax.random.key(0), (2, 6))
CLIP_PARAMS = params_of(CLIP)
FROZEN = {"clip": Encoder(network=CLIP, params=CLIP_PARAMS)}
ARRAYS = {"z_i": Z_I, "tokens": TOKENS, "mask": MASK}
HIDDEN_DECODER = dataclasses.replace(DECODER, text=None, text_width=CLIP.text.width)
T = jnp.array([5.0, 700.0])


@pytest.fixture(scope="module")
def text():
    return CLIP.encode_text(CLIP_PARAMS, TOKENS)


def prior_cond(spec):
    return spec.Cond(**Caption().sample(spec, FROZEN, ARRAYS, 2))


def decoder_cond(spec):
    fields = {}
    for condition in (CLIPImage(), Caption(), InpaintMask()):
        fields |= condition.sample(spec, FROZEN, ARRAYS, 2)
    return spec.Cond(**fields)


def given(cond):
    return {name for name, value in vars(cond).items() if value is not None}


def test_the_masked_image():
    images = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    mask = jnp.zeros((2, 4, 4), bool).at[1, 1:3, 2].set(True)
    known = np.asarray(inpaint_cond(images, mask))
    np.testing.assert_array_equal(known[..., 3], mask)
    np.testing.assert_array_equal(known[~mask][:, :3], images[~mask])
    np.testing.assert_array_equal(known[mask], np.tile([0, 0, 0, 1], (2, 1)))


def test_of_a_whole_image_nothing_is_known():
    assert decoder_cond(DECODER).masked_image is None
    known = decoder_cond(dataclasses.replace(DECODER, inpainting=True)).masked_image
    np.testing.assert_array_equal(known, np.broadcast_to([0, 0, 0, 1], (2, 8, 8, 4)))


def test_a_condition_can_be_done_without():
    """As on guidance's other side: what the network reads stays, and the flag says that it counts for nothing."""
    for condition, flag in ((CLIPImage(), "drop_z_i"), (Caption(), "drop_text")):
        fields = condition.sample(DECODER, FROZEN, ARRAYS, 2)
        null = condition.null(fields)
        assert not fields[flag].any() and null[flag].all()
        assert all(null[name] is value for name, value in fields.items() if name != flag)
        assert UNetCond(**fields).null().__dict__[flag].all()


def test_a_prior_reads_clips_hidden_states(text):
    cond = prior_cond(PRIOR)
    assert given(cond) == {"z_t", "mask", "drop_text", "hidden"}
    np.testing.assert_array_equal(cond.z_t, text.z_t)
    np.testing.assert_array_equal(cond.hidden, text.hidden)
    np.testing.assert_array_equal(cond.mask, MASK)
    assert not cond.drop_text.any() and cond.drop_text.shape == (2,)


def test_a_prior_with_an_encoder_reads_tokens_and_z_t(text):
    cond = prior_cond(dataclasses.replace(PRIOR, text=TEXT))
    assert given(cond) == {"z_t", "mask", "drop_text", "tokens"}
    np.testing.assert_array_equal(cond.z_t, text.z_t)
    np.testing.assert_array_equal(cond.tokens, TOKENS)


def test_a_decoder_with_an_encoder_reads_tokens():
    cond = decoder_cond(DECODER)
    assert given(cond) == {"z_i", "drop_z_i", "tokens", "mask", "drop_text"}
    np.testing.assert_array_equal(cond.tokens, TOKENS)
    np.testing.assert_array_equal(cond.z_i, Z_I)
    np.testing.assert_array_equal(cond.mask, MASK)
    assert not cond.drop_z_i.any() and not cond.drop_text.any()


def test_a_decoder_without_one_reads_clips_hidden_states_and_z_t(text):
    cond = decoder_cond(HIDDEN_DECODER)
    assert given(cond) == {"z_i", "drop_z_i", "hidden", "z_t", "mask", "drop_text"}
    np.testing.assert_array_equal(cond.hidden, text.hidden)
    np.testing.assert_array_equal(cond.z_t, text.z_t)


def test_a_decoder_without_a_caption_reads_z_i_alone():
    assert given(decoder_cond(dataclasses.replace(DECODER, text=None))) == {"z_i", "drop_z_i"}


@pytest.mark.parametrize("spec", [PRIOR, dataclasses.replace(PRIOR, text=TEXT)])
def test_the_prior_takes_it(spec):
    cond = prior_cond(spec)
    out = jax.eval_shape(lambda *args: spec.apply(*args), spec.abstract_params(), Z_I, T, cond)
    assert out.shape == (2, 6)


@pytest.mark.parametrize("spec", [DECODER, HIDDEN_DECODER, dataclasses.replace(DECODER, text=None)])
def test_the_decoder_takes_it(spec):
    shapes = spec.abstract_params()
    out = jax.eval_shape(
        lambda params, *args: spec.apply(params, *args), shapes, jnp.zeros((2, 8, 8, 3)), T, decoder_cond(spec)
    )
    assert out.shape == (2, 8, 8, 6)


@pytest.mark.parametrize(
    ("condition", "network", "brought", "expected"),
    [
        (CLIPImage(), DECODER, (), {"image"}),
        (CLIPImage(), DECODER, ("z_i",), set()),
        (CLIPImage(), dataclasses.replace(DECODER, embed_dim=None), (), set()),
        (Caption(), DECODER, (), set()),
        (Caption(), HIDDEN_DECODER, ("z_i", "z_t"), {"text"}),
        (Caption(), PRIOR, ("z_t",), {"text"}),
        (Caption(), dataclasses.replace(PRIOR, text=TEXT), (), {"text"}),
        (Caption(), dataclasses.replace(PRIOR, text=TEXT), ("z_i", "z_t"), set()),
        (InpaintMask(), DECODER, (), set()),
    ],
)
def test_what_a_batch_brings_spares_a_tower(condition, network, brought, expected):
    assert condition.towers(network, brought) == expected


def test_a_condition_that_does_not_say_so_needs_both_towers():
    @dataclasses.dataclass(frozen=True)
    class Other(Condition):
        encoders = ("clip",)

    assert Other().towers(DECODER, ("z_i", "z_t")) == {"image", "text"}
