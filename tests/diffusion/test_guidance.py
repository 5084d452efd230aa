import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion import Guidance, ProcessSpec, Threshold

FIXED = ProcessSpec(num_steps=100).build()
LEARNED = ProcessSpec(num_steps=100, variance="learned_range").build()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cond:
    label: jax.Array
    mask: jax.Array

    def null(self):
        return Cond(jnp.zeros_like(self.label), jnp.zeros_like(self.mask))


COND = Cond(jnp.array([1.0, 2.0, 3.0]), jnp.ones((3, 2), bool))
X_T = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
T = jnp.array([10, 50, 90])


def network(x_t, t, cond):
    """A label scales the image by its own value, so halves are easy to tell apart."""
    label, time = (values.reshape(-1, 1, 1, 1) for values in (cond.label, t / 100))
    # Every position must stay with its own condition, mask and time.
    assert cond.mask.shape[0] == x_t.shape[0] == t.shape[0]
    return jnp.sin(x_t * (1 + label) + time) + cond.mask[:, :1, None, None]


def learned_network(x_t, t, cond):
    return jnp.concatenate([network(x_t, t, cond), 0.1 * network(x_t + 1, t, cond)], axis=-1)


def recording(model_fn):
    calls = []

    def recorded(x_t, t, cond):
        calls.append((x_t, t, cond))
        return model_fn(x_t, t, cond)

    return recorded, calls


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, -1.0])
def test_combines_one_forward_of_twice_the_batch(scale):
    model_fn, calls = recording(network)
    guided = Guidance(scale=scale).wrap(FIXED, model_fn)(X_T, T, COND)
    [(x_t, t, cond)] = calls
    assert x_t.shape == (6, 4, 4, 2)
    np.testing.assert_array_equal(t, [10, 50, 90, 10, 50, 90])
    np.testing.assert_array_equal(cond.label, [0, 0, 0, 1, 2, 3])
    np.testing.assert_array_equal(cond.mask[:, 0], [0, 0, 0, 1, 1, 1])
    unconditional, conditional = (np.float64(network(X_T, T, c)) for c in (COND.null(), COND))
    np.testing.assert_allclose(guided, unconditional + scale * (conditional - unconditional), rtol=1e-5, atol=1e-6)


def test_scale_1_is_the_model_itself():
    model_fn, calls = recording(network)
    result = Guidance(scale=1.0).wrap(FIXED, model_fn)(X_T, T, COND)
    [(x_t, _, _)] = calls
    assert x_t.shape == X_T.shape
    np.testing.assert_array_equal(result, network(X_T, T, COND))


def test_variance_channels_come_from_the_conditional_half():
    model_fn, calls = recording(learned_network)
    guided = Guidance(scale=4.0, rescale=0.5).wrap(LEARNED, model_fn)(X_T, T, COND)
    assert len(calls) == 1 and guided.shape == (3, 4, 4, 4)
    prediction, channels = LEARNED.split(guided)
    np.testing.assert_allclose(channels, LEARNED.split(learned_network(X_T, T, COND))[1], rtol=1e-6)
    alone = Guidance(scale=4.0, rescale=0.5).wrap(FIXED, network)(X_T, T, COND)
    np.testing.assert_allclose(prediction, alone, rtol=1e-5, atol=1e-6)


def test_interval_includes_its_ends_and_leaves_the_rest_conditional():
    everywhere = Guidance(scale=4.0, rescale=0.3).wrap(FIXED, network)(X_T, T, COND)
    conditional = network(X_T, T, COND)
    assert (abs(everywhere - conditional).max(axis=(1, 2, 3)) > 0.1).all()
    for interval, inside in (
        ((10, 50), [1, 1, 0]),
        ((11, 90), [0, 1, 1]),
        ((51, 89), [0, 0, 0]),
        ((0, 99), [1, 1, 1]),
    ):
        guided = Guidance(scale=4.0, rescale=0.3, interval=interval).wrap(FIXED, network)(X_T, T, COND)
        expected = jnp.where(jnp.array(inside).reshape(3, 1, 1, 1) == 1, everywhere, conditional)
        np.testing.assert_allclose(guided, expected, rtol=1e-6, atol=1e-6)


def test_rescale_restores_the_conditional_spread_of_every_example():
    conditional = np.asarray(network(X_T, T, COND))
    plain = np.asarray(Guidance(scale=5.0).wrap(FIXED, network)(X_T, T, COND))
    full = np.asarray(Guidance(scale=5.0, rescale=1.0).wrap(FIXED, network)(X_T, T, COND))
    partial = np.asarray(Guidance(scale=5.0, rescale=0.7).wrap(FIXED, network)(X_T, T, COND))
    for example in range(3):
        assert plain[example].std() > 1.2 * conditional[example].std()
        np.testing.assert_allclose(full[example].std(), conditional[example].std(), rtol=1e-5)
        ratio = conditional[example].std() / plain[example].std()
        np.testing.assert_allclose(partial[example], (0.7 * ratio + 0.3) * plain[example], rtol=1e-4, atol=1e-6)


def test_rescale_of_a_constant_prediction_is_finite():
    def constant(x_t, t, cond):
        return jnp.zeros_like(x_t) + cond.label[:, None, None, None]

    guided = Guidance(scale=2.0, rescale=1.0).wrap(FIXED, constant)(X_T, T, COND)
    assert np.isfinite(guided).all()


def test_guides_in_float32():
    def half(x_t, t, cond):
        return network(x_t, t, cond).astype(jnp.bfloat16)

    guided = Guidance(scale=3.0).wrap(FIXED, half)(X_T, T, COND)
    assert guided.dtype == jnp.float32
    unconditional, conditional = (half(X_T, T, c).astype(jnp.float32) for c in (COND.null(), COND))
    np.testing.assert_allclose(guided, unconditional + 3 * (conditional - unconditional), rtol=1e-6, atol=1e-6)


def test_guidance_validates():
    with pytest.raises(ValueError, match="rescale must lie between 0 and 1"):
        Guidance(rescale=1.5)
    with pytest.raises(ValueError, match="interval must be"):
        Guidance(interval=(5, 4))
    with pytest.raises(ValueError, match=r"null\(\)"):
        Guidance(scale=2.0).wrap(FIXED, network)(X_T, T, {"label": T})


@pytest.mark.parametrize("shape", [(5, 40), (5, 4, 4, 3), (5, 2, 3, 4, 2)])
def test_dynamic_threshold_per_example_on_any_rank(shape):
    x_0 = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x_0 *= np.array([0.1, 0.5, 1, 3, 9], np.float32).reshape((5,) + (1,) * (len(shape) - 1))
    result = np.asarray(Threshold(kind="dynamic", percentile=0.9).apply(jnp.asarray(x_0)))
    for example, found in zip(x_0, result, strict=True):
        bound = max(np.quantile(abs(example), 0.9), 1.0)
        np.testing.assert_allclose(found, np.clip(example, -bound, bound) / bound, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result[0], x_0[0])
    np.testing.assert_allclose(abs(result).reshape(5, -1).max(1)[3:], 1, rtol=1e-6)


def test_dynamic_threshold_at_another_limit():
    x_0 = jnp.array([[1.0, -3.0, 8.0], [1.0, -3.0, 4.0]])
    result = Threshold(kind="dynamic", limit=5.0, percentile=1.0).apply(x_0)
    np.testing.assert_allclose(result, [[0.625, -1.875, 5.0], [1.0, -3.0, 4.0]], rtol=1e-6)


def test_static_and_no_threshold():
    x_0 = jnp.array([[1.0, -3.0, 8.0]])
    np.testing.assert_array_equal(Threshold().apply(x_0), [[1, -1, 1]])
    np.testing.assert_array_equal(Threshold(limit=5.0).apply(x_0), [[1, -3, 5]])
    np.testing.assert_array_equal(Threshold(kind="none").apply(x_0), x_0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("limit", 0.0), ("limit", -1.0), ("percentile", 0.0), ("percentile", 1.5), ("kind", "soft")],
)
def test_threshold_validates(unchecked, field, value):
    with pytest.raises(ValueError, match=f"threshold {field} must"):
        Threshold(**{field: value})
