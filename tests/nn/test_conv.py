import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.helpers import assert_close
from tests.nn import reference
from unclip_jax.nn.conv import (
    Conv3x3,
    _filter_gradient_native,
    conv3x3,
    depth_to_space,
    space_to_depth,
)
from unclip_jax.nn.cpu.conv import filter_gradient

RNG = np.random.default_rng(2)
X = jnp.array(RNG.standard_normal((2, 4, 6, 3)), jnp.float32)
KERNEL = jnp.array(RNG.standard_normal((3, 3, 3, 5)), jnp.float32)
WEIGHT = jnp.array(RNG.standard_normal((2, 4, 6, 5)), jnp.float32)
# Products in a number of the result; and in one of a gradient, which is a sum over the 48 pixels (or 45 filters) of
# functions of the results.
FORWARD, BACKWARD = 27, 27 + 48


def native(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def traced_gradients(convolution, x, kernel, weight):
    return jax.grad(lambda x, kernel: jnp.sum(weight * jnp.sin(convolution(x, kernel))), (0, 1))(x, kernel)


gradients = reference.quick_jit(traced_gradients, static_argnums=0)


@pytest.mark.parametrize("size", [(4, 6), (1, 1), (1, 4)])
def test_forward_is_a_padded_cross_correlation(size):
    x = X[:, : size[0], : size[1]]
    params = {"kernel": KERNEL, "bias": np.arange(5.0)}
    assert_close(conv3x3(x, KERNEL), native(x, KERNEL), terms=FORWARD)
    out = reference.apply(Conv3x3(5, jnp.dtype("float32")), params, x)
    assert_close(out, reference.conv3x3(params, x), terms=FORWARD + 1)


@pytest.mark.parametrize("size", [(4, 6), (1, 1), (3, 2)])
def test_gradients_are_the_native_ones(size):
    x, weight = (a[:, : size[0], : size[1]] for a in (X, WEIGHT))
    for ours, expected in zip(gradients(conv3x3, x, KERNEL, weight), gradients(native, x, KERNEL, weight), strict=True):
        assert_close(ours, expected, terms=BACKWARD)


def test_gradients_under_vmap():
    kernels = jnp.stack([KERNEL, 2 * KERNEL])
    many = reference.quick_jit(jax.vmap(lambda kernel: traced_gradients(conv3x3, X, kernel, WEIGHT)))(kernels)
    for i, kernel in enumerate(kernels):
        for ours, expected in zip(many, gradients(native, X, kernel, WEIGHT), strict=True):
            assert_close(ours[i], expected, terms=BACKWARD)


def test_both_forms_of_the_filter_gradient_agree():
    assert_close(filter_gradient(X, WEIGHT), _filter_gradient_native(X, WEIGHT), terms=48)


def test_a_cpu_multiplies_matrices_and_accelerators_convolve():
    traced = gradients.trace(conv3x3, X, KERNEL, WEIGHT)

    def count(operation, platform):
        return traced.lower(lowering_platforms=(platform,)).as_text().count(f"stablehlo.{operation}")

    assert count("dot_general", "cpu") == 9
    for accelerator in ("tpu", "cuda"):
        assert count("dot_general", accelerator) == 0
        assert count("convolution", accelerator) == count("convolution", "cpu") + 1


def test_half_precision_computes_in_half_and_keeps_float32_parameters():
    module = Conv3x3(5, jnp.dtype("bfloat16"))
    params = {"kernel": KERNEL, "bias": jnp.arange(5.0)}
    out = reference.apply(module, params, X)
    assert out.dtype == jnp.bfloat16
    # Half a unit of bfloat16's 8 bits in each factor and in the result, which goes up to 16.
    np.testing.assert_allclose(np.float32(out), reference.conv3x3(params, X), atol=0.15)
    grads = jax.grad(lambda p: jnp.sum(WEIGHT * reference.apply(module, p, X).astype(jnp.float32)))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(grads["kernel"], _filter_gradient_native(X, WEIGHT), atol=0.2)
    # Added up in bfloat16: 48 roundings, each by 2^-9 of a partial sum. A pixel left out would be worth 1.
    total = WEIGHT.sum((0, 1, 2))
    np.testing.assert_allclose(grads["bias"], total, atol=2 * 48**0.5 * 2**-9 * np.abs(total).max())


def test_a_fresh_convolution_keeps_the_variance():
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 32))
    init = reference.quick_jit(Conv3x3(64, jnp.dtype("float32")).init_with_output)
    out, variables = init(jax.random.key(0), x)
    assert {name: leaf.shape for name, leaf in variables["params"].items()} == {
        "kernel": (3, 3, 32, 64),
        "bias": (64,),
    }
    np.testing.assert_allclose(np.std(out[:, 1:-1, 1:-1]), 1, atol=0.1)


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_space_to_depth_makes_the_pixels_of_a_patch_channels(patch):
    x = RNG.standard_normal((2, 2 * patch, 3 * patch, 3)).astype(np.float32)
    out = space_to_depth(jnp.array(x), patch)
    expected = np.zeros((2, 2, 3, patch * patch * 3), np.float32)
    for y in range(2 * patch):
        for column in range(3 * patch):
            start = 3 * (y % patch * patch + column % patch)
            expected[:, y // patch, column // patch, start : start + 3] = x[:, y, column]
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(depth_to_space(out, patch), x)
