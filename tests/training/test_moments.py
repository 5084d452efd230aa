import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.toy import FROZEN, Toy, batches
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import compile_step
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.moments import LEVELS, from_int8, quantize_moments, to_bfloat16, to_int8
from unclip_jax.training.optim import make_transform
from unclip_jax.training.state import init, state_shardings
from unclip_jax.training.step import make_step

pytestmark = pytest.mark.usefixtures("quick_compile")

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=10, ema_decay=0.9)
FEWER = pytest.mark.parametrize("moments", ["bfloat16", "int8"])


X = np.float32([[1.0, -0.7, 0.3, -0.05, 1e-3, -2e-4, 0.0], [300.0, 1.0, -100.0, 77.7, 1e-1, 5.0, -3.0]])


def chances(seed, *shape):
    return jax.random.bits(jax.random.key(seed), shape, jnp.uint16)


def average(rounded):
    return np.asarray(jnp.mean(jax.vmap(rounded)(chances(0, 4000, *X.shape)), 0))


def test_bfloat16_is_right_on_average():
    x = jnp.asarray(X) * 1.001
    found = average(lambda chance: to_bfloat16(x, chance).astype(jnp.float32))
    # A draw is off by half a distance (a 128th at the most) at the most, on average over 4000 by a 63rd of that.
    np.testing.assert_allclose(found, x, rtol=5 / 256 / 4000**0.5)
    assert np.any(np.abs(found - np.float32(jnp.asarray(x, jnp.bfloat16))) > np.abs(x) * 1e-3)


@pytest.mark.parametrize("name", LEVELS)
def test_int8_is_right_on_average(name):
    levels = LEVELS[name]
    x = jnp.asarray(X if levels.signed else X**2)
    found = average(lambda chance: from_int8(*to_int8(x, chance, levels), levels))
    share = np.abs(x) / np.max(x, axis=1, keepdims=True)
    k = levels.below(share)
    distance = np.asarray(levels(k + 1) - levels(k)) * np.max(x, axis=1, keepdims=True)
    assert np.all(np.abs(found - x) <= 5 * 0.5 * distance / 4000**0.5 + 1e-6 * np.abs(x))


def test_bfloat16_is_a_neighbour():
    x = jnp.asarray(X)
    found = np.stack([to_bfloat16(x, chances(i, *x.shape)).astype(jnp.float32) for i in range(20)])
    assert np.all(np.abs(found - X) < np.abs(X) / 128 + 1e-30)
    assert len(np.unique(found[:, 0, 1])) == 2
    exact = jnp.float32([1.0, -0.5, 0.0, 3.0e38, 1.5e-20]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(to_bfloat16(exact.astype(jnp.float32), chances(1, 5)), exact)


@pytest.mark.parametrize("name", LEVELS)
def test_int8_is_a_neighbour(name):
    levels = LEVELS[name]
    x = jnp.abs(jax.random.normal(jax.random.key(0), (3, 64, 5))) ** 4 * (1 if not levels.signed else -1)
    code, scale = to_int8(x, chances(1, *x.shape), levels)
    assert (code.dtype, code.nbytes) == (jnp.int8 if levels.signed else jnp.uint8, x.size)
    assert scale.shape == (3, 64, 1)
    found = from_int8(code, scale, levels)
    largest = np.abs(x) == scale
    np.testing.assert_array_equal(found[largest], x[largest])
    steps = jnp.abs(levels.below(jnp.abs(x) / scale) - jnp.abs(code.astype(jnp.float32)))
    assert int(steps.max()) == 1 and np.all(np.sign(found) * np.sign(x) >= 0)


def test_nothing_stays_nothing_and_a_second_moment_does_not_become_it():
    x = jnp.float32([[0, 0, 0], [1, 0, 1e-25]])
    found = {name: from_int8(*to_int8(x, chances(0, *x.shape), own), own) for name, own in LEVELS.items()}
    for each in found.values():
        np.testing.assert_array_equal(each[:, :2], x[:, :2])
    assert list(found.values())[-1][1, 2] > 0


@pytest.mark.slow
@FEWER
def test_a_second_moment_comes_down(moments):
    """To the nearest number it would not: 0.999 is nearer to 1 than to the next bfloat16, or level."""
    assert jnp.bfloat16(0.999) == 1
    transform = quantize_moments(optax.scale_by_adam(b2=0.999), moments)
    ones = jnp.ones((64, 64))
    # The first step makes it 1.
    _, state = transform.update(ones / 0.001**0.5, transform.init(ones))
    decay = jax.jit(lambda s: jax.lax.fori_loop(0, 700, lambda _, s: transform.update(0 * ones, s)[1], s))
    state = decay(state)
    nu = state.inner.nu.astype(jnp.float32)
    nu = nu if moments == "bfloat16" else from_int8(state.inner.nu, state.scales["nu"], LEVELS["nu"])
    assert abs(float(jnp.mean(nu)) / 0.999**700 - 1) < 0.02


def test_float32_is_the_optimiser_itself():
    adam = optax.scale_by_adam()
    assert quantize_moments(adam, "float32") is adam


def size(optim, params):
    state = jax.eval_shape(make_transform(optim).init, params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def test_bytes():
    dense, conv = jnp.zeros((256, 512)), jnp.zeros((3, 3, 64, 64))
    params = {"dense": {"kernel": dense, "bias": jnp.zeros(512)}, "conv": {"kernel": conv}}
    numbers, matrices = sum(leaf.size for leaf in jax.tree.leaves(params)), 256 * 512 + 9 * 64 * 64
    counts, rows = 4, 256 + 9 * 64
    sizes = [size(OptimConfig(moments=moments), params) for moments in ("float32", "bfloat16", "int8")]
    assert sizes == [8 * numbers + counts, 4 * numbers + counts, 2 * (matrices + 4 * rows + 4 * 512) + counts]
    assert size(OptimConfig(optimizer="muon", moments="int8"), params) < 0.3 * size(
        OptimConfig(optimizer="muon"), params
    )


@functools.cache
def trained(optimizer, moments, steps=150):
    """(parameters, losses) of a toy run on one device."""
    stage, mesh = Toy(hidden=32), make_mesh(MeshSpec(), jax.devices()[:1])
    optim = dataclasses.replace(OPTIM, optimizer=optimizer, moments=moments)
    state = init(stage, optim, mesh, jax.random.key(0))
    step = compile_step(make_step(stage, optim, total_steps=steps, seed=1), mesh, state_shardings(state))
    losses = []
    for _, batch in zip(range(steps), batches(0, size=32), strict=False):
        state, metrics = step.run(state, FROZEN, step.put(batch))
        losses.append(metrics["loss"])
    return jax.device_get(state.params), np.float64(losses)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("moments", "loss_error", "moved_error"), [("bfloat16", 1e-3, 0.03), ("int8", 5e-3, 0.15)])
def test_training_is_as_with_float32(optimizer, moments, loss_error, moved_error):
    """Losses, on average over the run; and where parameters end, as a share of the way that they went.

    Rounding is off by a 256th (bfloat16) or a 30th (int8) of a moment, another way each time. What is allowed is
    five to seven times what was found.
    """
    params, losses = trained(optimizer, moments)
    expected, expected_losses = trained(optimizer, "float32")
    assert expected_losses[-20:].mean() < 0.5 * expected_losses[:5].mean()
    assert 0 < np.mean(np.abs(losses / expected_losses - 1)) < loss_error

    def distance(a, b):
        return np.sqrt(sum(np.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))

    assert 0 < distance(params, expected) < moved_error * distance(expected, Toy(hidden=32).init(jax.random.key(0)))


@FEWER
def test_rows_may_hold_gradients_of_all_sizes(moments):
    """32 regressions whose gradients are 1 to 1e-6, side by side in the rows of one kernel: Adam solves them alike."""
    weights = jax.random.normal(jax.random.key(0), (16, 32))
    sizes = jnp.logspace(-6, 0, 32)
    transform = make_transform(OptimConfig(moments=moments, eps=1e-30))

    @jax.jit
    def solve():
        def step(i, carry):
            params, state = carry
            x = jax.random.normal(jax.random.fold_in(jax.random.key(1), i), (32, 16))
            grads = jax.grad(lambda p: jnp.mean(sizes * jnp.square(x @ (p["kernel"] - weights))))(params)
            updates, state = transform.update(grads, state, params)
            rate = 0.03 * jnp.minimum(1, (300 - i) / 150)
            return jax.tree.map(lambda p, u: p - rate * u, params, updates), state

        params = {"kernel": jnp.zeros((16, 32))}
        return jax.lax.fori_loop(0, 300, step, (params, transform.init(params)))[0]["kernel"]

    assert np.sqrt(np.mean((solve() - weights) ** 2, axis=0)).max() < 0.1
