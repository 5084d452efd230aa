import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_close
from tests.nn import reference
from unclip_jax.nn.norms import GroupNorm, layer_norm

RNG = np.random.default_rng(1)
X = (RNG.standard_normal((2, 4, 6, 8)) * np.arange(1, 9) + np.arange(8)).astype(np.float32)
SCALE, SHIFT = RNG.standard_normal((2, 2, 8)).astype(np.float32)
PARAMS = {"scale": RNG.standard_normal(8).astype(np.float32), "bias": RNG.standard_normal(8).astype(np.float32)}


def group_norm(x, groups=4, dtype="float32", scale=None, shift=None):
    module = GroupNorm(groups, dtype=jnp.dtype(dtype))
    return reference.apply(module, PARAMS, *(None if a is None else jnp.asarray(a) for a in (x, scale, shift)))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norm_is_equation_1(groups):
    assert_close(group_norm(X, groups), reference.group_norm(PARAMS, X, groups), terms=X[0].size // groups)


def test_a_large_mean_costs_little_precision():
    x = (100 + RNG.standard_normal((2, 16, 16, 8))).astype(np.float32)
    expected = reference.group_norm(PARAMS, x, 4)
    # E[x^2] - E[x]^2 in float32 would be off by 1e-3.
    assert np.abs(group_norm(x) - expected).max() < 5e-5 * np.abs(expected).max()


def test_modulation_is_applied_after_the_affine():
    for told in ({"scale": SCALE}, {"shift": SHIFT}, {"scale": SCALE, "shift": SHIFT}):
        assert_close(group_norm(X, **told), reference.group_norm(PARAMS, X, 4, **told), terms=X[0].size // 4)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_epsilon_is_1e_5(norm):
    # The variance is 1e-6, so that epsilon decides the result.
    x = 1e-3 * X / X.std()
    if norm == "group":
        assert_close(group_norm(x), reference.group_norm(PARAMS, x, 4), terms=x[0].size // 4)
    else:
        out = reference.apply(layer_norm(jnp.dtype("float32"), "norm"), PARAMS, jnp.asarray(x))
        assert_close(out, reference.layer_norm(PARAMS, x), terms=x.shape[-1])


def test_statistics_are_float32_in_half_precision():
    x = jnp.asarray(10 + X, jnp.bfloat16)
    out = group_norm(x, dtype="bfloat16")
    assert out.dtype == jnp.bfloat16
    # Only the result is rounded: half a unit of bfloat16's 8 bits.
    np.testing.assert_allclose(
        reference.f64(out), reference.group_norm(PARAMS, reference.f64(x), 4), rtol=2**-8, atol=1e-5
    )
    out = reference.apply(layer_norm(jnp.dtype("bfloat16"), "norm"), PARAMS, x)
    np.testing.assert_allclose(
        reference.f64(out), reference.layer_norm(PARAMS, reference.f64(x)), rtol=2**-8, atol=1e-5
    )


def test_starts_as_the_plain_norm():
    params = GroupNorm(4, dtype=jnp.dtype("float32")).init(jax.random.key(0), jnp.asarray(X))["params"]
    np.testing.assert_array_equal(params["scale"], np.ones(8))
    np.testing.assert_array_equal(params["bias"], np.zeros(8))
