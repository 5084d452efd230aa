import jax
import jax.numpy as jnp
import pytest
from jax import lax

from unclip_jax.nn.attention import attention
from unclip_jax.nn.conv import conv3x3
from unclip_jax.planning.flops import count_flops

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 16), jnp.float32)
DOT = 2 * 4 * 8 * 16
IMAGE = jax.ShapeDtypeStruct((2, 32, 32, 8), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 8, 16), jnp.float32)
CONV = 2 * 2 * 32 * 32 * 16 * 9 * 8


def test_product():
    assert count_flops(jnp.matmul, X, W) == DOT


def test_batched_product():
    b = jax.ShapeDtypeStruct((3, 4, 8), jnp.float32), jax.ShapeDtypeStruct((3, 8, 16), jnp.float32)
    assert count_flops(jnp.matmul, *b) == 3 * DOT


def test_convolution_counts_as_the_accelerator_does_it():
    """On a CPU it may be Winograd's, with fewer multiplications."""
    assert count_flops(conv3x3, IMAGE, KERNEL) == CONV


def test_gradients_of_a_convolution():
    grad = jax.grad(lambda x, kernel: conv3x3(x, kernel).sum(), argnums=(0, 1))
    assert count_flops(grad, IMAGE, KERNEL) == 3 * CONV


def test_attention():
    q = jax.ShapeDtypeStruct((2, 5, 3, 7), jnp.float32)
    s = jax.ShapeDtypeStruct((2, 11, 3, 7), jnp.float32)
    assert count_flops(attention, q, s, s) == 2 * (2 * 2 * 3 * 5 * 11 * 7)


def test_a_scanned_layer_counts_every_time():
    square = jax.ShapeDtypeStruct((8, 8), jnp.float32)

    def layers(x, w):
        return lax.scan(lambda carry, _: (jnp.tanh(carry @ w), None), x, None, length=6)[0]

    assert count_flops(layers, X, square) == 6 * 2 * 4 * 8 * 8


@pytest.mark.parametrize(("remat", "times"), [(False, 3), (True, 4)])
def test_recomputation_counts(remat, times):
    def layer(x, w):
        return jnp.tanh(x @ w)

    def loss(x, w):
        return (jax.checkpoint(layer) if remat else layer)(x, w).sum()

    assert count_flops(jax.grad(loss, argnums=(0, 1)), X, W) == times * DOT


def test_the_larger_branch_counts():
    def choose(x, w):
        return lax.cond(x[0, 0] > 0, lambda: (x @ w).sum(), lambda: x.sum())

    assert count_flops(choose, X, W) == DOT
