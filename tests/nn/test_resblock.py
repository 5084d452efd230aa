import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_close
from tests.nn import reference
from unclip_jax.nn.resblock import ResBlock, resample

RNG = np.random.default_rng(3)
X = np.float32(RNG.standard_normal((2, 4, 6, 8)))
EMBEDDING = np.float32(RNG.standard_normal((2, 5)))
# Two convolutions of 8 channels, two norms of up to 192 numbers.
TERMS = 2 * 72 + 2 * 192


def resample_in_numpy(x, how):
    if how == "up":
        return x.repeat(2, axis=1).repeat(2, axis=2)
    if how == "down":
        return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    return x


def block_in_numpy(params, conditioning, how, features):
    h = reference.silu(reference.group_norm(params["norm_in"], X, 2))
    h = reference.conv3x3(params["conv_in"], resample_in_numpy(h, how))
    modulation = reference.dense(params["embedding"], reference.silu(reference.f64(EMBEDDING)))
    if conditioning == "scale_shift":
        h = reference.group_norm(params["norm_out"], h, 2, modulation[:, :features], modulation[:, features:])
    else:
        h = reference.group_norm(params["norm_out"], h + modulation[:, None, None], 2)
    skip = resample_in_numpy(X, how)
    if "skip" in params:
        skip = reference.dense(params["skip"], skip)
    return skip + reference.conv3x3(params["conv_out"], reference.silu(h))


def make(**changes):
    return ResBlock(**{"features": 8, "dtype": jnp.dtype("float32"), "groups": 2, **changes})


@pytest.mark.parametrize("how", ["none", "up", "down"])
def test_resample(how):
    # The four pixels of a mean go up to 3.
    assert_close(resample(jnp.array(X), how), resample_in_numpy(X, how), terms=4, size=float(np.abs(X).max()))


@pytest.mark.parametrize(
    ("conditioning", "how", "features"),
    [("scale_shift", "none", 8), ("scale_shift", "up", 8), ("additive", "down", 8), ("additive", "none", 6)],
)
def test_is_equations_1_to_3(conditioning, how, features):
    module = make(conditioning=conditioning, resample=how, features=features)
    params = reference.init_random(module, jnp.array(X), jnp.array(EMBEDDING))
    assert ("skip" in params) == (features != 8)
    out = reference.quick_jit(module.apply)({"params": params}, jnp.array(X), jnp.array(EMBEDDING))
    assert_close(out, block_in_numpy(params, conditioning, how, features), terms=TERMS)


@pytest.mark.parametrize("how", ["none", "up", "down"])
def test_starts_as_the_skip_alone(how):
    init = reference.quick_jit(make(resample=how).init_with_output)
    out, _ = init(jax.random.key(0), jnp.array(X), jnp.array(EMBEDDING))
    np.testing.assert_array_equal(out, resample(jnp.array(X), how))


def test_dropout_acts_on_the_residual_and_only_with_keys():
    module = make(dropout_rate=0.5)
    params = reference.init_random(module, jnp.array(X), jnp.array(EMBEDDING))
    call = reference.quick_jit(lambda params, *args: reference.apply(module, params, *args))
    keys, same = jax.random.split(jax.random.key(0), 2), (jnp.array(X[[0, 0]]), jnp.array(EMBEDDING[[0, 0]]))
    plain, dropped = call(params, *same, None), call(params, *same, keys)
    assert_close(plain[0], block_in_numpy(params, "scale_shift", "none", 8)[0], terms=TERMS)
    assert np.abs(dropped - plain).max() > 0.1 and np.abs(dropped[0] - dropped[1]).max() > 0.1
    assert_close(call(params, *same, keys[::-1]), dropped[::-1], terms=TERMS)
    closed = {**params, "conv_out": jax.tree.map(jnp.zeros_like, params["conv_out"])}
    np.testing.assert_array_equal(call(closed, *same, keys), same[0])


def test_half_precision():
    module = make(dtype=jnp.dtype("bfloat16"), features=6)
    params = reference.init_random(module, jnp.array(X), jnp.array(EMBEDDING))
    out = reference.quick_jit(module.apply)({"params": params}, jnp.array(X), jnp.array(EMBEDDING))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), block_in_numpy(params, "scale_shift", "none", 6), atol=0.1)
