import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_close
from tests.nn import reference
from unclip_jax.nn.attention import ContextAttention, SelfAttention, attention

RNG = np.random.default_rng(0)
B, Q, S, HEADS, D = 2, 5, 7, 3, 4
QUERY, KEY, VALUE = (np.float32(2 * RNG.standard_normal((B, n, HEADS, D))) for n in (Q, S, S))
PADDING = np.arange(S)[None, None, None, :] < np.array([4, 7])[:, None, None, None]
CAUSAL = np.tril(np.ones((1, 1, Q, Q), bool))
# Products of a logit, terms of the softmax, weighted values; a gradient goes back through all of them.
FORWARD, BACKWARD = D + 2 * S, 2 * (D + 2 * S)


@pytest.mark.parametrize("mask", [None, PADDING], ids=["all", "padding"])
def test_is_the_softmax_of_equation_1(mask):
    out = attention(jnp.array(QUERY), jnp.array(KEY), jnp.array(VALUE), mask if mask is None else jnp.array(mask))
    assert_close(out, reference.attention(QUERY, KEY, VALUE, mask), terms=FORWARD)


def test_a_mask_may_differ_per_query():
    mask = CAUSAL & PADDING[..., :Q]
    out = attention(jnp.array(QUERY), jnp.array(KEY[:, :Q]), jnp.array(VALUE[:, :Q]), jnp.array(mask))
    assert_close(out, reference.attention(QUERY, KEY[:, :Q], VALUE[:, :Q], mask), terms=FORWARD)
    # The first query sees the first key alone.
    assert_close(out[:, 0], VALUE[:, 0], terms=1)


@pytest.mark.parametrize("mask", [None, PADDING, CAUSAL & PADDING[..., :Q]], ids=["all", "padding", "per query"])
def test_one_head_at_a_time_is_the_same_in_value_and_gradient(mask, monkeypatch):
    inputs = [jnp.array(x) for x in (QUERY, KEY, VALUE)]
    if mask is not None and mask.shape[2] == Q:
        inputs[1:] = [x[:, :Q] for x in inputs[1:]]
    told = None if mask is None else jnp.array(mask)

    def run():
        def loss(query, key, value):
            out = attention(query, key, value, told)
            return jnp.sum(jnp.sin(out)), out

        return reference.quick_jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)

    (_, together), gradients = run()
    monkeypatch.setattr("unclip_jax.nn.cpu.attention.LARGE", 1)
    (_, apart), gradients_apart = run()
    assert_close(apart, together, terms=FORWARD)

    def loss_of_jax(*qkv):
        out = jax.nn.dot_product_attention(*qkv, mask=told)
        return jnp.sum(jnp.sin(out)), out

    (_, reference_out), reference_gradients = reference.quick_jit(
        jax.value_and_grad(loss_of_jax, (0, 1, 2), has_aux=True)
    )(*inputs)
    assert_close(together, reference_out, terms=FORWARD)
    assert_close(gradients, reference_gradients, terms=BACKWARD)
    assert_close(gradients_apart, reference_gradients, terms=BACKWARD)


def test_a_query_that_may_look_nowhere_gets_the_mean():
    mask = jnp.zeros((1, 1, 1, S), bool)
    out = attention(jnp.array(QUERY), jnp.array(KEY), jnp.array(VALUE), mask)
    # The values that are averaged go up to 5.
    mean = np.broadcast_to(VALUE.mean(1, keepdims=True), out.shape)
    assert_close(out, mean, terms=FORWARD, size=float(np.abs(VALUE).max()))


def test_accelerators_keep_xlas_attention():
    traced = jax.jit(attention).trace(*(jax.ShapeDtypeStruct((1, 512, 2, 64), jnp.float32) for _ in range(3)))
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    for accelerator in ("tpu", "cuda"):
        assert "stablehlo.while" not in traced.lower(lowering_platforms=(accelerator,)).as_text()


def test_half_precision_keeps_its_dtype_and_a_float32_softmax():
    # Logits near 300 differ by 1: in bfloat16, whose step there is 2, they would be equal.
    query = jnp.array([[[[300.0]]]], jnp.bfloat16)
    key = jnp.array([[[[1.0]], [[1.0078125]]]], jnp.bfloat16)
    value = jnp.array([[[[0.0]], [[1.0]]]], jnp.bfloat16)
    out = attention(query, key, value)
    assert out.dtype == jnp.bfloat16
    # The result, below 1, is rounded to 8 bits.
    np.testing.assert_allclose(np.float32(out), 1 / (1 + np.exp(-300 * 0.0078125)), atol=2**-8)


def test_self_attention_projects_splits_heads_and_projects_back():
    x = np.float32(RNG.standard_normal((B, Q, 6)))
    module = SelfAttention(num_heads=2, dtype=jnp.dtype("float32"))
    params = reference.init_random(module, jnp.array(x))
    mask = CAUSAL & PADDING[..., :Q]
    out = module.apply({"params": params}, jnp.array(x), jnp.array(mask))
    assert_close(out, reference.self_attention(params, x, 2, mask), terms=FORWARD + 2 * 6)


CONTEXT_ATTENTION = ContextAttention(head_channels=4, dtype=jnp.dtype("float32"), groups=2)
X = np.float32(RNG.standard_normal((B, 2, 3, 8)))
CONTEXT = np.float32(RNG.standard_normal((B, 4, 5)))
CONTEXT_MASK = np.array([[True, True, False, False], [True, False, True, True]])
PARAMS = reference.init_random(CONTEXT_ATTENTION, jnp.array(X), jnp.array(CONTEXT))


def attend(x, context=None, mask=None):
    told = (None if each is None else jnp.array(each) for each in (x, context, mask))
    return reference.quick_jit(CONTEXT_ATTENTION.apply)({"params": PARAMS}, *told)


def attend_in_numpy(x, context=None, mask=None):
    b, h, w, c = x.shape
    pixels = reference.group_norm(PARAMS["norm"], x, 2).reshape(b, h * w, c)
    query, key, value = (reference.dense(PARAMS[name], pixels) for name in ("query", "key", "value"))
    visible = np.ones((b, h * w), bool)
    if context is not None:
        key = np.concatenate([reference.dense(PARAMS["context_key"], context), key], axis=1)
        value = np.concatenate([reference.dense(PARAMS["context_value"], context), value], axis=1)
        visible = np.concatenate([np.ones(context.shape[:2], bool) if mask is None else mask, visible], axis=1)
    query, key, value = (each.reshape(b, -1, c // 4, 4) for each in (query, key, value))
    out = reference.attention(query, key, value, visible[:, None, None, :]).reshape(b, h * w, c)
    return x + reference.dense(PARAMS["out"], out).reshape(x.shape)


@pytest.mark.parametrize("told", [(), (CONTEXT,), (CONTEXT, CONTEXT_MASK)], ids=["pixels", "context", "masked context"])
def test_one_softmax_over_context_and_pixels(told):
    # The norm averages 24 numbers, projections sum 8; a query looks at 4 tokens and 6 pixels.
    assert_close(attend(X, *told), attend_in_numpy(X, *told), terms=24 + 2 * 8 + 4 + 2 * 10)


def test_is_the_identity_at_the_start():
    init = reference.quick_jit(CONTEXT_ATTENTION.init_with_output)
    np.testing.assert_array_equal(init(jax.random.key(1), jnp.array(X), jnp.array(CONTEXT))[0], X)


def test_masked_context_has_no_influence():
    changed = np.where(CONTEXT_MASK[..., None], CONTEXT, 1e3).astype(np.float32)
    np.testing.assert_array_equal(attend(X, changed, CONTEXT_MASK), attend(X, CONTEXT, CONTEXT_MASK))
    visible = CONTEXT.copy()
    visible[:, 0] += 1
    assert np.abs(attend(X, visible, CONTEXT_MASK) - attend(X, CONTEXT, CONTEXT_MASK)).max(axis=(1, 2, 3)).min() > 1e-3


def test_pixels_have_no_order():
    turned = attend(X[:, ::-1, ::-1], CONTEXT, CONTEXT_MASK)[:, ::-1, ::-1]
    assert_close(turned, attend(X, CONTEXT, CONTEXT_MASK), terms=24 + 2 * 8 + 4 + 2 * 10)


@pytest.mark.parametrize("mask", [PADDING, CAUSAL & PADDING[..., :Q]], ids=["padding", "per query"])
def test_cudnn_gets_masks_and_lengths_that_it_takes(mask, monkeypatch):
    """What it asks for in training, read off jax._src.cudnn; its numbers are stood in for by XLA's."""
    fused = jax.nn.dot_product_attention
    keys = mask.shape[-1]

    def as_cudnn(query, key, value, *, mask, implementation):
        assert implementation == "cudnn"
        assert mask.shape[2:] == (query.shape[1], key.shape[1])
        assert query.shape[1] % 2 == key.shape[1] % 2 == 0
        return fused(query, key, value, mask=mask, implementation="xla")

    def loss(implementation, *inputs):
        out = attention(*inputs, jnp.array(mask), implementation)
        return jnp.sum(jnp.sin(out)), out

    inputs = [jnp.array(QUERY), jnp.array(KEY[:, :keys]), jnp.array(VALUE[:, :keys])]
    value_and_grad = reference.quick_jit(jax.value_and_grad(loss, (1, 2, 3), has_aux=True), static_argnums=0)
    (_, expected), expected_gradients = value_and_grad("xla", *inputs)
    monkeypatch.setattr(jax.nn, "dot_product_attention", as_cudnn)
    (_, out), gradients = value_and_grad("cudnn", *inputs)
    assert_close(out, expected, terms=FORWARD)
    assert_close(gradients, expected_gradients, terms=BACKWARD)
