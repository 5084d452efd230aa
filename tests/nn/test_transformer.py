import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_close
from tests.nn import reference
from unclip_jax.nn.transformer import Transformer, activate, causal_mask

RNG = np.random.default_rng(4)
N, WIDTH, DEPTH, HEADS = 5, 8, 2, 2
X = jnp.array(RNG.standard_normal((2, N, WIDTH)), jnp.float32)
PARAMS = reference.init_random(Transformer(DEPTH, HEADS), X)
PADDING = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)[:, None, None, :]
# Of a block: two norms and six products over the width, one of them four times as wide, and attention over N tokens.
# A gradient comes back the same way, and is a sum over the tokens of both examples.
FORWARD = DEPTH * ((2 + 6 + 4) * WIDTH + 3 * N)
BACKWARD = 2 * FORWARD + 2 * N
STACKED = {"blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *(PARAMS[f"block_{i}"] for i in range(DEPTH)))}


@functools.partial(reference.quick_jit, static_argnames=("activation", "dtype", "scan"))
def run(params, x, mask, **options):
    return reference.apply(Transformer(DEPTH, HEADS, **options), params, x, mask)


def gradients(params, x, mask, **options):
    def loss(params, x):
        return jnp.sum(jnp.sin(reference.apply(Transformer(DEPTH, HEADS, **options), params, x, mask)))

    return reference.quick_jit(jax.grad(loss, (0, 1)))(params, x)


def test_activations_are_exact():
    x = np.linspace(-6, 6, 49, dtype=np.float32)
    gelu = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    # The tanh approximation is off by 5e-4.
    assert_close(activate(jnp.array(x), "gelu"), np.array(gelu), terms=1)
    quick = [v / (1 + math.exp(-1.702 * v)) for v in x.tolist()]
    assert_close(activate(jnp.array(x), "quick_gelu"), np.array(quick), terms=1)


def test_is_equation_1_repeated():
    mask = np.asarray(causal_mask(N) & PADDING)
    expected = reference.f64(X)
    for i in range(DEPTH):
        expected = reference.block(PARAMS[f"block_{i}"], expected, HEADS, mask)
    assert_close(run(PARAMS, X, jnp.array(mask)), expected, terms=FORWARD)


def test_the_activation_is_passed_on():
    assert np.abs(run(PARAMS, X, None, activation="quick_gelu") - run(PARAMS, X, None)).max() > 1e-3


def test_causal_mask_hides_the_future():
    np.testing.assert_array_equal(causal_mask(3)[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    moved = X.at[:, 3].set(X[:, 3, ::-1])
    out, changed = run(PARAMS, X, causal_mask(N)), run(PARAMS, moved, causal_mask(N))
    np.testing.assert_array_equal(changed[:, :3], out[:, :3])
    assert np.abs(changed - out)[:, 3:].max(-1).min() > 1e-3
    assert np.abs(run(PARAMS, moved, None) - run(PARAMS, X, None))[:, 0].max() > 1e-3


@pytest.mark.parametrize("mask", [None, causal_mask(N) & PADDING], ids=["all", "masked"])
def test_scan_is_the_same_network_with_stacked_parameters(mask):
    shapes = jax.eval_shape(Transformer(DEPTH, HEADS, scan=True).init, jax.random.key(0), X)["params"]
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, STACKED)
    assert_close(run(STACKED, X, mask, scan=True), run(PARAMS, X, mask), terms=FORWARD)


def test_fresh_blocks_of_a_scan_differ():
    params = reference.quick_jit(Transformer(DEPTH, HEADS, scan=True).init)(jax.random.key(0), X)["params"]
    kernel = params["blocks"]["fc"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1


@pytest.mark.slow
def test_remat_and_scan_give_the_same_gradients():
    mask = causal_mask(N) & PADDING
    of_params, of_x = gradients(PARAMS, X, mask)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(of_params)) > 0.1
    assert_close(gradients(PARAMS, X, mask, remat=True), (of_params, of_x), terms=BACKWARD)
    stacked = {"blocks": jax.tree.map(lambda *g: np.stack(g), *(of_params[f"block_{i}"] for i in range(DEPTH)))}
    assert_close(gradients(STACKED, X, mask, scan=True, remat=True), (stacked, of_x), terms=BACKWARD)


def test_remat_recomputes():
    def saved(remat):
        loss = lambda p: jnp.sum(reference.apply(Transformer(DEPTH, HEADS, remat=remat), p, X))  # noqa: E731
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], PARAMS)))

    assert saved(True) < saved(False) / 1.5


def test_half_precision():
    out = run(PARAMS, X, None, dtype=jnp.dtype("bfloat16"))
    np.testing.assert_allclose(np.float32(out), run(PARAMS, X, None), atol=0.15)
