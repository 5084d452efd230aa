import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_close
from tests.models import helpers
from tests.models.helpers import CLIP, TEXT, encode_image, encode_text, moved, params_of
from tests.nn import reference
from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.models import clip
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec

RAW = dataclasses.replace(CLIP, embedding="raw")
PARAMS = params_of(CLIP)
RNG = np.random.default_rng(0)
IMAGES = jnp.array(RNG.uniform(-1, 1, (3, 8, 8, 3)), jnp.float32)
EOS = TEXT.eos_id
# Patches of 48 numbers; a block of twelve sums over the width and attention over five tokens; two norms, a projection.
TERMS = 48 + 12 * 8 + 3 * 5 + 3 * 8
# The end-of-text id is a small one, so that an argmax over ids would pool somewhere else.
TOKENS = jnp.array([[1, 7, EOS, 0, 0], [1, 9, 4, 5, EOS], [1, EOS, 0, 0, 0]])


def patches_in_numpy(images):
    """Row by row, each patch as its pixels row by row, colours last; normalised as OpenAI does."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = ((np.float64(images) + 1) / 2 - mean) / std
    rows = [
        [image[y : y + 4, x : x + 4].reshape(-1) for y in range(0, 8, 4) for x in range(0, 8, 4)] for image in pixels
    ]
    return np.array(rows)


def image_tower_in_numpy(images):
    x = patches_in_numpy(images) @ np.float64(PARAMS["patch_embed"]["kernel"])
    cls = np.broadcast_to(PARAMS["class_token"], (len(x), 1, x.shape[-1]))
    x = np.concatenate([cls, x], axis=1) + PARAMS["vision_positions"]
    x = reference.block(PARAMS["vision_blocks"]["block_0"], reference.layer_norm(PARAMS["norm_pre"], x), 2)
    return reference.layer_norm(PARAMS["norm_post"], x[:, 0]) @ np.float64(PARAMS["image_projection"]["kernel"])


def text_tower_in_numpy(tokens):
    x = np.float64(PARAMS["token_embed"]["embedding"])[tokens] + PARAMS["text_positions"]
    x = reference.block(PARAMS["text_blocks"]["block_0"], x, 2, np.tril(np.ones((5, 5), bool)))
    hidden = reference.layer_norm(PARAMS["norm_final"], x)
    pooled = np.stack([states[list(row).index(EOS)] for states, row in zip(hidden, tokens.tolist(), strict=True)])
    return hidden, pooled @ np.float64(PARAMS["text_projection"]["kernel"])


def test_image_tower_is_equation_1():
    z_i = encode_image(RAW, PARAMS, IMAGES)
    assert_close(z_i, image_tower_in_numpy(IMAGES), terms=TERMS)


def test_text_tower_is_equation_2():
    text = encode_text(RAW, PARAMS, TOKENS)
    hidden, z_t = text_tower_in_numpy(TOKENS)
    assert_close(text.hidden, hidden, terms=TERMS)
    assert_close(text.z_t, z_t, terms=TERMS)


def test_what_follows_the_first_end_of_text_does_not_matter():
    z_t = encode_text(RAW, PARAMS, TOKENS).z_t
    after = TOKENS.at[0, 3:].set(jnp.array([9, EOS])).at[2, 2:].set(6)
    np.testing.assert_array_equal(encode_text(RAW, PARAMS, after).z_t, z_t)
    assert moved(encode_text(RAW, PARAMS, TOKENS.at[:, 0].set(3)).z_t, z_t).min() > 1e-3


def test_unit_embeddings_are_raw_ones_over_their_norm():
    for encode, given in ((encode_image, IMAGES), (lambda *a: encode_text(*a).z_t, TOKENS)):
        raw, unit = np.asarray(encode(RAW, PARAMS, given)), np.asarray(encode(CLIP, PARAMS, given))
        assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.05
        assert_close(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), terms=TERMS)


@pytest.mark.parametrize("scale", [1.5, np.log(100) + 2])
def test_logits_are_scaled_cosines_and_the_scale_stops_at_100(scale):
    params = {**PARAMS, "logit_scale": jnp.float32(scale)}
    z_i, z_t = image_tower_in_numpy(IMAGES), text_tower_in_numpy(TOKENS)[1]
    cosines = (z_i @ z_t.T) / np.linalg.norm(z_i, axis=1)[:, None] / np.linalg.norm(z_t, axis=1)
    for spec in (CLIP, RAW):
        logits = helpers.apply(spec, params, IMAGES, TOKENS)
        # Cosines of up to 1 times the scale, whichever the largest here are.
        factor = min(np.exp(scale), 100)
        assert_close(logits, factor * cosines, terms=2 * TERMS, size=factor)


def test_half_precision_returns_float32_near_full_precision():
    half = dataclasses.replace(RAW, dtype="bfloat16")
    text, z_i = encode_text(half, PARAMS, TOKENS), encode_image(half, PARAMS, IMAGES)
    hidden, z_t = text_tower_in_numpy(TOKENS)
    for ours, expected in ((text.hidden, hidden), (text.z_t, z_t), (z_i, image_tower_in_numpy(IMAGES))):
        assert ours.dtype == jnp.float32
        assert 1e-4 < np.abs(ours - expected).max() < 0.05 * np.abs(expected).max()


def test_gradient_reaches_every_parameter():
    def loss(params):
        logits = CLIP.apply(params, IMAGES, TOKENS)
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))

    # A bias of the keys adds the same to all logits of a query, which no softmax sees.
    assert helpers.without_gradient(reference.quick_jit(jax.grad(loss))(PARAMS)) == {
        "vision_blocks/block_0/attention/key/bias",
        "text_blocks/block_0/attention/key/bias",
    }


def test_fresh_parameters_are_float32_and_the_temperature_is_clips():
    half = dataclasses.replace(CLIP, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.abstract_params())} == {jnp.dtype("float32")}
    scale = reference.quick_jit(lambda key: CLIP.init(key)["logit_scale"])(jax.random.key(0))
    np.testing.assert_allclose(np.exp(scale), 1 / 0.07, rtol=1e-5)


@pytest.mark.parametrize("spec", [CLIP, RAW, clip.vit_h16()])
def test_spec_goes_through_json(spec):
    assert from_json(CLIPSpec, to_json(spec)) == spec


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(CLIP.vision, num_heads=3), "vision: width 8 is not divisible by 3 heads"),
        (lambda: dataclasses.replace(TEXT, width=9), "text: width 9 is not divisible by 2 heads"),
        (lambda: dataclasses.replace(CLIP.vision, image_size=10), "image_size 10 is not a multiple of patch_size 4"),
        (lambda: from_json(CLIPSpec, {**to_json(CLIP), "dtype": "float8"}), "'float8' .* is not one of 'float32'"),
        (lambda: from_json(VisionSpec, {**to_json(CLIP.vision), "widht": 1}), "did you mean 'width'"),
        (lambda: from_json(TextSpec, {**to_json(TEXT), "eos_id": None}), "eos_id: expected a value of type int"),
    ],
)
def test_invalid_specs(make, message):
    with pytest.raises(UserError, match=message):
        make()
