"""Winograd's algorithm and the gathered neighbourhoods, against a plain sum in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_close, rounding
from tests.nn import reference
from unclip_jax.nn import conv
from unclip_jax.nn.cpu import winograd
from unclip_jax.nn.cpu.conv import _convolve_columns as columns

RNG = np.random.default_rng(4)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [(2, 2), (2, 6), (8, 4)])
@pytest.mark.parametrize("form", [winograd.convolve, columns])
def test_is_the_padded_sum(form, size):
    x, kernel = draw(2, *size, 5), draw(3, 3, 5, 7)
    expected = reference.conv3x3({"kernel": np.float64(kernel), "bias": np.zeros(7)}, np.float64(x))
    assert_close(form(jnp.array(x), jnp.array(kernel)), expected, terms=9 * 5)


def test_is_as_accurate_as_the_plain_sum():
    x, kernel = draw(2, 16, 16, 256), draw(3, 3, 256, 64)
    expected = reference.conv3x3({"kernel": np.float64(kernel), "bias": np.zeros(64)}, np.float64(x))
    errors = {
        form: np.abs(np.asarray(form(jnp.array(x), jnp.array(kernel))) - expected).max()
        for form in (conv._convolve_native, winograd.convolve)
    }
    assert errors[winograd.convolve] < rounding(9 * 256, np.abs(expected).max())
    assert errors[winograd.convolve] < 4 * errors[conv._convolve_native]


FORMS = {
    "much work": ((2, 32, 32, 96), (3, 3, 96, 96), "winograd"),
    "few pixels": ((2, 4, 4, 768), (3, 3, 768, 768), "columns"),
    "odd size": ((2, 33, 33, 96), (3, 3, 96, 96), "native"),
    "three channels": ((16, 128, 128, 3), (3, 3, 3, 128), "native"),
    "little work": ((2, 8, 8, 64), (3, 3, 64, 64), "native"),
}


@pytest.mark.parametrize(("x", "kernel", "form"), FORMS.values(), ids=list(FORMS))
def test_the_form_follows_from_the_shapes(x, kernel, form):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, kernel)]
    traced = jax.jit(conv.conv3x3).trace(*shapes)
    program = traced.lower(lowering_platforms=("cpu",)).as_text()
    products = {"native": 0, "columns": 1, "winograd": 16}[form]
    assert program.count("stablehlo.dot_general") == products
    assert program.count("stablehlo.convolution") == (form == "native")
    on_a_tpu = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert (on_a_tpu.count("stablehlo.dot_general"), on_a_tpu.count("stablehlo.convolution")) == (0, 1)


def test_half_precision_is_left_to_the_native_convolution():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in FORMS["much work"][:2]]
    assert "stablehlo.dot_general" not in jax.jit(conv.conv3x3).lower(*shapes).as_text()


def test_gradients_are_the_native_ones():
    x, kernel, weight = draw(2, 32, 32, 96), draw(3, 3, 96, 96) / 30, draw(2, 32, 32, 96)

    def gradients(convolution):
        return jax.jit(jax.grad(lambda x, kernel: jnp.sum(weight * jnp.sin(convolution(x, kernel))), (0, 1)))(x, kernel)

    for ours, native in zip(gradients(conv.conv3x3), gradients(conv._convolve_native), strict=True):
        # Of the filter: a sum over 2048 pixels of functions of sums of 864 products.
        assert_close(ours, native, terms=9 * 96 + 2048)
