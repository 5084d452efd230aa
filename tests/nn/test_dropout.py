import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.nn.reference import quick_jit
from unclip_jax.nn import dropout as layer

dropout = quick_jit(layer.dropout, static_argnums=(1, 3))
KEYS = jax.random.split(jax.random.key(0), 6)
X = 1 + jax.random.uniform(jax.random.key(1), (6, 4, 4, 8))
PATH = ("unet", "down_0_0")


def test_a_mask_belongs_to_the_example_not_to_its_place():
    out = dropout(X, 0.3, KEYS, PATH)
    order = jnp.array([3, 0, 5])
    np.testing.assert_array_equal(dropout(X[order], 0.3, KEYS[order], PATH), out[order])


def test_masks_differ_between_examples_and_layers():
    masks = np.asarray(dropout(jnp.ones_like(X), 0.5, KEYS, PATH) > 0)
    assert len({mask.tobytes() for mask in masks}) == len(KEYS)
    for other in (("unet", "down_0_1"), ("down_0_0", "unet")):
        other_masks = np.asarray(dropout(jnp.ones_like(X), 0.5, KEYS, other) > 0)
        # Independent coins agree half of the time.
        assert abs((masks == other_masks).mean() - 0.5) < 0.1


def test_keeps_the_mean_by_scaling_what_stays():
    x = jnp.ones((6, 4000))
    out = np.asarray(dropout(x, 0.25, KEYS, PATH))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
    np.testing.assert_allclose((out == 0).mean(1), 0.25, atol=0.04)
    np.testing.assert_allclose(out.mean(), 1, atol=0.02)
    # The mask is a matter of the key alone: another x is kept at the same places.
    np.testing.assert_array_equal(dropout(3 * x, 0.25, KEYS, PATH) > 0, out > 0)


def test_evaluation_and_rate_zero_are_the_identity():
    assert layer.dropout(X, 0.5, None, PATH) is X
    np.testing.assert_array_equal(dropout(X, 0.0, KEYS, PATH), X)


def test_keeps_the_dtype():
    assert dropout(X.astype(jnp.bfloat16), 0.3, KEYS, PATH).dtype == jnp.bfloat16


def test_layers_of_a_network_get_masks_of_their_own():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return layer.dropout(x, 0.5, keys, self.path)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return Layer(name="first")(x, keys), Layer(name="second")(x, keys), nn.remat(Layer)(name="third")(x, keys)

    first, second, third = quick_jit(Network().apply)({}, X, KEYS)
    assert np.mean(np.asarray(first == second)) < 0.7
    np.testing.assert_array_equal(first, dropout(X, 0.5, KEYS, ("first",)))
    np.testing.assert_array_equal(third, dropout(X, 0.5, KEYS, ("third",)))
