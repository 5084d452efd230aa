import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_close
from tests.models import helpers
from tests.models.helpers import DECODER, TEXT, UPSAMPLER, moved, params_of
from tests.nn import reference
from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.models import unet
from unclip_jax.models.unet import Conditioner, UNetCond, UNetSpec

replace = dataclasses.replace

HIDDEN_DECODER = replace(DECODER, text=None, text_width=7)
# One level and no caption, for tests that compile a network several times.
SMALL = replace(DECODER, channel_mult=(1,), attention_resolutions=(8,), text=None, dropout=0.3)
RNG = np.random.default_rng(0)
B, N = 3, TEXT.context
# Convolutions of up to 288 products and norms of up to 256 numbers, a dozen of each in a row.
FORWARD = 12 * (288 + 256)


def normal(*shape):
    return jnp.array(RNG.standard_normal(shape), jnp.float32)


X_T, T = normal(B, 8, 8, 3), jnp.array([3.0, 400.0, 999.0])
# Where a result is compared with one of float64: float32 knows an angle of 999 to 6e-5 only.
EARLY = jnp.array([3.0, 40.0, 99.0])
MASK = jnp.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], bool)
TOKENS = jnp.array([[1, 2, 0, 0, 0], [1, 9, 4, 5, 2], [1, 7, 7, 2, 0]])
NONE = jnp.zeros(B, bool)
COND = UNetCond(z_i=normal(B, 6), drop_z_i=NONE, tokens=TOKENS, mask=MASK, drop_text=NONE)
KEYS = jax.random.split(jax.random.key(0), B)
HIDDEN_COND = replace(COND, tokens=None, hidden=normal(B, N, 7), z_t=normal(B, 6))
BOTH = pytest.mark.parametrize(
    ("spec", "cond"), [(DECODER, COND), (HIDDEN_DECODER, HIDDEN_COND)], ids=["tokens", "hidden"]
)


def run(spec=DECODER, cond=COND, x_t=X_T, t=T, keys=None, params=None):
    return helpers.apply(spec, params_of(spec) if params is None else params, x_t, t, cond, keys)


def zeroed(params, *names):
    """`params` with everything under these names of the conditioner at zero."""
    closed = {name: jax.tree.map(jnp.zeros_like, params["conditioner"][name]) for name in names}
    return {**params, "conditioner": {**params["conditioner"], **closed}}


def other_caption(cond):
    """Another caption of another length."""
    changed = replace(cond, mask=cond.mask.at[:, 1:].set(~cond.mask[:, 1:]))
    if cond.tokens is None:
        return replace(changed, hidden=cond.hidden[::-1] + 1, z_t=cond.z_t - 1)
    return replace(changed, tokens=(cond.tokens + 3) % TEXT.vocab_size)


def text_encoder_in_numpy(params):
    x = np.float64(params["tokens"]["embedding"])[TOKENS] + params["positions"]
    x = reference.block(params["transformer"]["block_0"], x, TEXT.num_heads, np.asarray(MASK)[:, None, None, :])
    return reference.layer_norm(params["norm"], x)


@pytest.mark.slow
@BOTH
def test_conditioner_is_equations_1_and_2(spec, cond):
    drop_z_i, drop_text = np.array([0, 1, 0], bool), np.array([0, 0, 1], bool)
    params = params_of(spec)["conditioner"]
    sinusoids = 10_000.0 ** (-np.arange(4) / 4) * np.asarray(EARLY)[:, None]
    time = np.concatenate([np.cos(sinusoids), np.sin(sinusoids)], axis=1)
    time = reference.dense(params["time"]["proj"], reference.silu(reference.dense(params["time"]["fc"], time)))
    z_i = np.where(drop_z_i[:, None], params["null_z_i"], 2.5 * cond.z_i)
    if spec.text is None:
        hidden, pooled = cond.hidden, cond.z_t
    else:
        hidden = text_encoder_in_numpy(params["text"])
        pooled = hidden[np.arange(B), np.asarray(MASK).sum(1) - 1]
    pooled = np.where(drop_text[:, None], params["null_pooled"], reference.dense(params["text_embedding"], pooled))
    text = reference.layer_norm(params["text_norm"], reference.dense(params["text_in"], hidden))
    text = np.where(drop_text[:, None, None], params["null_text"], text)
    image_tokens = reference.dense(params["z_i_tokens"], z_i).reshape(B, 4, 8)

    told = replace(cond, drop_z_i=jnp.array(drop_z_i), drop_text=jnp.array(drop_text))
    module = Conditioner(replace(spec, z_i_scale=2.5))
    embedding, context, mask = reference.quick_jit(module.apply)({"params": params}, EARLY, told)
    # The rounded angle of the last step, 99, outweighs all that follows.
    assert_close(embedding, time + reference.dense(params["z_i_embedding"], z_i) + pooled, terms=1, size=99)
    # The Transformer of one block: twelve sums over its width, attention over five tokens.
    assert_close(context, np.concatenate([image_tokens, text], axis=1), terms=12 * 8 + 3 * N)
    np.testing.assert_array_equal(mask[:, :4], True)
    np.testing.assert_array_equal(mask[:, 4:], np.asarray(MASK) | drop_text[:, None])


@pytest.mark.parametrize(
    ("learned_sigma", "patch", "conditioning"),
    [(True, 1, "scale_shift"), (False, 2, "scale_shift"), (True, 2, "additive")],
)
def test_shapes(learned_sigma, patch, conditioning):
    spec = replace(DECODER, learned_sigma=learned_sigma, patch=patch, conditioning=conditioning)
    shapes = spec.abstract_params()
    out = jax.eval_shape(lambda params: spec.apply(params, X_T, T, COND), shapes)
    assert out.shape == (B, 8, 8, 6 if learned_sigma else 3) and out.dtype == jnp.float32
    assert shapes["conv_in"]["kernel"].shape == (3, 3, 3 * patch**2, 8)
    assert shapes["down_0_0"]["embedding"]["kernel"].shape == (32, 16 if conditioning == "scale_shift" else 8)


def test_attention_stands_at_the_levels_asked_for():
    found = {name for name in params_of(DECODER) if name.endswith("attention")}
    assert found == {"down_1_0_attention", "middle_attention", "up_1_0_attention", "up_1_1_attention"}
    assert "context_key" in params_of(DECODER)["middle_attention"]
    # Sizes are those of the feature map: with patches of 2 the first level is at 4 already.
    folded = replace(DECODER, patch=2).abstract_params()
    assert {name for name in folded if name.endswith("attention")} == {
        "down_0_0_attention",
        "middle_attention",
        "up_0_0_attention",
        "up_0_1_attention",
    }
    assert not any(name.endswith("attention") for name in params_of(UPSAMPLER))


@pytest.mark.slow
def test_starts_at_zero():
    last = reference.quick_jit(lambda key: DECODER.init(key)["conv_out"])(jax.random.key(0))
    np.testing.assert_array_equal(last["kernel"], 0)
    np.testing.assert_array_equal(last["bias"], 0)
    np.testing.assert_array_equal(run(params={**params_of(DECODER), "conv_out": last}), 0)
    assert moved(run(), np.zeros_like(run())).min() > 0.1


@BOTH
def test_every_input_has_an_influence(spec, cond):
    out = run(spec, cond)
    assert moved(run(spec, cond, x_t=X_T + 0.1 * X_T[::-1]), out).min() > 1e-3
    assert moved(run(spec, cond, t=T + 50), out).min() > 1e-3
    assert moved(run(spec, other_caption(cond)), out).min() > 1e-3
    if spec.text is None:
        assert moved(run(spec, replace(cond, hidden=cond.hidden[..., ::-1])), out).min() > 1e-3
        assert moved(run(spec, replace(cond, z_t=-cond.z_t)), out).min() > 1e-3


def test_examples_do_not_see_each_other():
    order = jnp.array([2, 0, 1])
    cond = jax.tree.map(lambda leaf: leaf[order], COND)
    assert_close(run(cond=cond, x_t=X_T[order], t=T[order]), run()[order], terms=FORWARD)
    changed = replace(COND, z_i=COND.z_i.at[0].set(9.0), tokens=TOKENS.at[0].set(5))
    np.testing.assert_array_equal(run(cond=changed, x_t=X_T.at[0].set(0), t=T.at[0].set(7))[1:], run()[1:])


def test_z_i_enters_through_the_embedding_and_through_the_tokens():
    other, params = replace(COND, z_i=-COND.z_i), params_of(DECODER)
    for closed in (zeroed(params, "z_i_tokens"), zeroed(params, "z_i_embedding")):
        assert moved(run(cond=other, params=closed), run(params=closed)).min() > 1e-3
    closed = zeroed(params, "z_i_tokens", "z_i_embedding")
    np.testing.assert_array_equal(run(cond=other, params=closed), run(params=closed))
    # The image tokens act through attention alone.
    blind = {
        name: {**block, "out": jax.tree.map(jnp.zeros_like, block["out"])} if name.endswith("attention") else block
        for name, block in zeroed(params, "z_i_embedding").items()
    }
    np.testing.assert_array_equal(run(cond=other, params=blind), run(params=blind))


@BOTH
def test_caption_enters_through_the_embedding_and_through_the_tokens(spec, cond):
    params, other = params_of(spec), other_caption(cond)
    for name in ("text_embedding", "text_norm"):
        closed = zeroed(params, name)
        assert moved(run(spec, other, params=closed), run(spec, cond, params=closed)).min() > 1e-4


@BOTH
def test_padding_has_no_influence(spec, cond):
    if spec.text is None:
        padded = replace(cond, hidden=jnp.where(MASK[..., None], cond.hidden, 50.0))
    else:
        padded = replace(cond, tokens=jnp.where(MASK, cond.tokens, 8))
    np.testing.assert_array_equal(run(spec, padded), run(spec, cond))
    unmasked = jnp.ones_like(MASK)
    difference = moved(run(spec, replace(padded, mask=unmasked)), run(spec, replace(cond, mask=unmasked)))
    assert difference[[0, 2]].min() > 1e-3 and difference[1] == 0


@BOTH
def test_dropping_forgets_that_input_of_that_example_only(spec, cond):
    out = run(spec, cond)
    drop = jnp.array([True, False, True])
    for name, other in (
        ("drop_z_i", replace(cond, z_i=-3 * cond.z_i)),
        ("drop_text", other_caption(cond)),
    ):
        dropped, other = run(spec, replace(cond, **{name: drop})), run(spec, replace(other, **{name: drop}))
        np.testing.assert_array_equal(other[drop], dropped[drop])
        assert moved(other, dropped)[1] > 1e-3
        np.testing.assert_array_equal(dropped[1], out[1])
        assert moved(dropped, out)[[0, 2]].min() > 1e-3


@BOTH
def test_null_drops_image_and_caption_of_every_example(spec, cond):
    everything = jnp.ones(B, bool)
    null = run(spec, cond.null())
    np.testing.assert_array_equal(null, run(spec, replace(cond, drop_z_i=everything, drop_text=everything)))
    other = replace(other_caption(cond), z_i=-3 * cond.z_i)
    np.testing.assert_array_equal(run(spec, other.null()), null)


@pytest.mark.slow
def test_dropout_belongs_to_the_example():
    order = jnp.array([2, 0, 1])
    out = run(SMALL, keys=KEYS)
    cond = jax.tree.map(lambda leaf: leaf[order], COND)
    assert_close(run(SMALL, cond, X_T[order], T[order], KEYS[order]), out[order], terms=FORWARD)
    np.testing.assert_array_equal(run(SMALL), run(replace(SMALL, dropout=0.0), params=params_of(SMALL)))
    assert moved(out, run(SMALL)).min() > 1e-2
    assert moved(out, run(SMALL, keys=KEYS[::-1]))[[0, 2]].min() > 1e-2


@pytest.mark.slow
def test_half_precision_returns_float32_near_full_precision():
    out, half = run(), run(replace(DECODER, dtype="bfloat16"), params=params_of(DECODER))
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - out).max() < 0.1 * np.abs(out).max()


def gradient(spec, cond):
    def loss(params):
        return jnp.sum(jnp.sin(spec.apply(params, X_T, T, cond)))

    return reference.quick_jit(jax.value_and_grad(loss))(params_of(replace(spec, remat=False)))


@pytest.mark.slow
def test_gradient_reaches_every_parameter():
    cond = replace(COND, drop_z_i=jnp.array([1, 0, 0], bool), drop_text=jnp.array([0, 1, 0], bool))
    # A bias of the keys adds the same to all logits of a query, which no softmax sees. The U-Net's own attention has
    # a second one, of the context's keys, and is moved by their difference.
    expected = {"conditioner/text/transformer/block_0/attention/key/bias"}
    assert helpers.without_gradient(gradient(DECODER, cond)[1]) == expected


@pytest.mark.slow
def test_remat_changes_nothing():
    loss, gradients = gradient(SMALL, COND)
    loss_remat, gradients_remat = gradient(replace(SMALL, remat=True), COND)
    # The loss is a sum of 1152 sines.
    assert_close(loss_remat, loss, terms=FORWARD + 1152)
    assert_close(gradients_remat, gradients, terms=2 * FORWARD)


IMAGES, LOW_RES = normal(2, 2, 16, 8, 3)
INPAINTER = replace(UPSAMPLER, inpainting=True)


def upsample(x_t, low_res, spec=UPSAMPLER, **changed_params):
    params = {**params_of(UPSAMPLER), **changed_params}
    return helpers.apply(spec, params, x_t, T[:2], UNetCond(low_res=low_res))


def test_upsampler_reads_x_t_and_the_low_resolution_image_on_its_channels():
    out, conv_in = upsample(IMAGES, LOW_RES), params_of(UPSAMPLER)["conv_in"]
    assert conv_in["kernel"].shape[2] == 6
    assert moved(upsample(IMAGES, LOW_RES[::-1]), out).min() > 1e-2
    # x_t comes first: without the second half of the filters the low-resolution image is not seen.
    blind = {**conv_in, "kernel": conv_in["kernel"].at[:, :, 3:].set(0)}
    np.testing.assert_array_equal(
        upsample(IMAGES, LOW_RES[::-1], conv_in=blind), upsample(IMAGES, LOW_RES, conv_in=blind)
    )
    assert moved(upsample(IMAGES[::-1], LOW_RES, conv_in=blind), upsample(IMAGES, LOW_RES, conv_in=blind)).min() > 1e-2


def test_null_keeps_pixels():
    null = UNetCond(low_res=LOW_RES, masked_image=KNOWN).null()
    np.testing.assert_array_equal(null.low_res, LOW_RES)
    np.testing.assert_array_equal(null.masked_image, KNOWN)


KNOWN = normal(2, 16, 8, 4)


@pytest.mark.slow
@pytest.mark.parametrize("patch", [1, 2])
def test_made_to_inpaint_a_network_starts_as_it_was_and_can_see_what_is_known(patch):
    plain = replace(UPSAMPLER, patch=patch)
    spec, params = replace(plain, inpainting=True), params_of(plain)
    widened = spec.start_from(params)
    assert jax.tree.map(jnp.shape, widened) == jax.tree.map(lambda leaf: leaf.shape, spec.abstract_params())

    def call(spec, params, known):
        return helpers.apply(spec, params, IMAGES, T[:2], UNetCond(low_res=LOW_RES, masked_image=known))

    before = call(plain, params, None)
    assert_close(call(spec, widened, KNOWN), before, terms=FORWARD)
    # Trained, it looks at the colours and at where the hole is.
    trained = params_of(spec)
    out = call(spec, trained, KNOWN)
    for channel in range(4):
        assert moved(call(spec, trained, KNOWN.at[..., channel].add(1)), out).min() > 1e-2
    # What it has already, or has no use for, it keeps.
    assert spec.start_from(trained) is trained
    assert plain.start_from(params) is params


@pytest.mark.slow
def test_upsampler_trains_on_crops_and_runs_at_any_size():
    def call(images):
        return UPSAMPLER.apply(params_of(UPSAMPLER), images, T[:2], UNetCond(low_res=images))

    for size in ((32, 32), (16, 8), (4, 8)):
        shape = (2, *size, 3)
        assert jax.eval_shape(call, jax.ShapeDtypeStruct(shape, jnp.float32)).shape == shape
    other_size = replace(UPSAMPLER, image_size=256)
    assert other_size.abstract_params() == UPSAMPLER.abstract_params()
    np.testing.assert_array_equal(upsample(IMAGES, LOW_RES, other_size), upsample(IMAGES, LOW_RES))


@pytest.mark.parametrize(
    ("spec", "cond", "names"),
    [
        (DECODER, COND, ("z_i", "drop_z_i", "tokens", "mask", "drop_text")),
        (HIDDEN_DECODER, HIDDEN_COND, ("z_i", "drop_z_i", "hidden", "z_t", "mask", "drop_text")),
        (UPSAMPLER, UNetCond(low_res=normal(B, 8, 8, 3)), ("low_res",)),
        (INPAINTER, UNetCond(low_res=normal(B, 8, 8, 3), masked_image=normal(B, 8, 8, 4)), ("low_res", "masked_image")),
    ],
    ids=["tokens", "hidden", "upsampler", "inpainter"],
)
def test_a_missing_condition_is_named(spec, cond, names):
    for name in names:
        with pytest.raises(ValueError, match=f"this network needs cond.{name}, which is None"):
            spec.apply(params_of(spec), X_T, T, replace(cond, **{name: None}))


PRESETS = (unet.paper_decoder(), unet.paper_upsampler_256(), unet.paper_upsampler_1024())


@pytest.mark.parametrize("spec", [DECODER, HIDDEN_DECODER, UPSAMPLER, INPAINTER, *PRESETS])
def test_spec_goes_through_json(spec):
    assert from_json(UNetSpec, to_json(spec)) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_width": 8}, "set text .own encoder. or text_width .CLIP hidden states., not both"),
        ({"image_size": 9}, "image_size 9 is not a multiple of 2"),
        ({"image_size": 10, "patch": 2}, "image_size 10 is not a multiple of 4"),
        ({"groups": 3}, "width 8 is not divisible by groups 3"),
        ({"head_channels": 5}, "width 8 is not divisible by groups 2 and head_channels 5"),
        ({"channels": 12, "head_channels": 8}, "width 12 is not divisible by groups 2 and head_channels 8"),
    ],
)
def test_invalid_specs(changes, message):
    with pytest.raises(UserError, match=message):
        replace(DECODER, **changes)
    text = changes.get("text_width") and to_json(TEXT)
    data = {**to_json(DECODER), **changes, "text": text or to_json(TEXT)}
    with pytest.raises(UserError, match=f"config: unet: {message}"):
        from_json(UNetSpec, data)
