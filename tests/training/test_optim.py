import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.optim import clip, kernel_mask, learning_rate, make_transform, update_ema


def test_constant_rate_after_warmup():
    rate = learning_rate(OptimConfig(learning_rate=0.2, warmup_steps=4), 100)
    np.testing.assert_allclose([rate(jnp.int32(s)) for s in (0, 1, 3, 4, 99)], [0.05, 0.1, 0.2, 0.2, 0.2], rtol=1e-6)


def test_cosine_rate():
    rate = learning_rate(OptimConfig(learning_rate=0.2, warmup_steps=10, schedule="cosine"), 110)
    expected = [0.2, 0.2 * (1 + np.cos(np.pi / 4)) / 2, 0.1, 0.0, 0.0]
    np.testing.assert_allclose([rate(jnp.int32(s)) for s in (10, 35, 60, 110, 200)], expected, rtol=1e-5, atol=1e-8)


def test_no_warmup():
    assert learning_rate(OptimConfig(learning_rate=0.5, warmup_steps=0), 10)(jnp.int32(0)) == 0.5


def test_kernels_go_by_their_name():
    leaf = jnp.zeros((2, 2))
    params = {
        "dense": {"kernel": leaf, "bias": leaf},
        "norm": {"scale": leaf, "bias": leaf},
        "words": {"embedding": leaf},
        "kernel_norm": {"scale": leaf},
        "query": leaf,
    }
    mask = jax.tree.map(lambda _: False, params)
    mask["dense"]["kernel"] = True
    assert kernel_mask(params) == mask


def test_equals_optax_adamw():
    optim = OptimConfig(beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.06)
    params = {"a": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "bias": jnp.ones(3)}}
    grads = jax.tree.map(jnp.cos, params)
    reference = optax.adamw(1e-2, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.06, mask=kernel_mask)
    ours, theirs, transform = params, params, make_transform(optim)
    our_state, their_state = transform.init(params), reference.init(params)
    for _ in range(3):
        updates, our_state = transform.update(grads, our_state, ours)
        ours = jax.tree.map(lambda p, u: p - 1e-2 * u, ours, updates)
        updates, their_state = reference.update(grads, their_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)
    assert not np.allclose(ours["a"]["kernel"], params["a"]["kernel"])


@pytest.mark.parametrize(("limit", "factor"), [(10.0, 1.0), (2.5, 0.5), (None, 1.0)])
def test_clip(limit, factor):
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clipped = clip(grads, optax.tree.norm(grads), OptimConfig(clip_norm=limit))
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [3 * factor, 4 * factor], rtol=1e-6)


def test_zero_gradient_stays_zero():
    assert clip({"a": jnp.zeros(2)}, jnp.float32(0), OptimConfig())["a"].tolist() == [0, 0]


def test_ema_warms_up():
    def ema(step):
        return float(update_ema({"w": jnp.float32(0)}, {"w": jnp.float32(1)}, jnp.int32(step), 0.99)["w"])

    np.testing.assert_allclose([ema(0), ema(9), ema(10_000)], [0.9, 9 / 19, 0.01], rtol=1e-5)


def test_the_average_of_what_does_not_change_is_exact():
    weights = {"w": jax.random.normal(jax.random.key(0), (1000,))}
    for step in (0, 5, 900):
        found = update_ema(weights, weights, jnp.int32(step), 0.995)
        np.testing.assert_array_equal(found["w"], weights["w"])


MUON = OptimConfig(optimizer="muon", beta1=0.95, beta2=0.98, weight_decay=0.05)
KERNELS = {"dense": (6, 4), "wide": (3, 8), "stack": (2, 5, 5), "conv": (3, 3, 2, 4)}


def kernels(shapes=KERNELS, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: {"kernel": jax.random.normal(key, shapes[name])} for name, key in zip(shapes, keys, strict=True)}


def direction(optim, params, *gradients):
    """What `make_transform` makes of the last of these gradients."""
    transform = make_transform(optim)
    state, updates = transform.init(params), None
    for grads in gradients:
        updates, state = transform.update(grads, state, params)
    return updates


@pytest.mark.slow
def test_muon_equals_optax():
    """On kernels; optax moves everything else by Adam with Nesterov's momentum, which the paper does not have."""
    params, gradients = kernels(), [kernels(seed=seed) for seed in (1, 2, 3)]
    axes = {name: optax.contrib.MuonDimensionNumbers(-2, -1) for name in ("dense", "wide", "stack")}
    axes["conv"] = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    reference = optax.contrib.muon(
        1.0,
        beta=0.95,
        weight_decay=0.05,
        consistent_rms=0.2,
        muon_weight_dimension_numbers={name: {"kernel": axes[name]} for name in KERNELS},
    )
    state, updates = reference.init(params), None
    for grads in gradients:
        updates, state = reference.update(grads, state, params)
    got = direction(MUON, params, *gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-5, atol=1e-7), got, updates)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_muon_moves_along_the_singular_vectors(name, size):
    """Equation (5): the singular vectors of the gradient, every singular value about 1, whatever its size."""
    optim = OptimConfig(optimizer="muon")
    grads = jax.tree.map(lambda g: size * g, kernels(seed=1))
    update, grad = np.asarray(direction(optim, kernels(), grads)[name]["kernel"]), np.asarray(grads[name]["kernel"])
    matrix = (18, 4) if name == "conv" else update.shape[-2:]
    for u, g in zip(update.reshape(-1, *matrix), grad.reshape(-1, *matrix), strict=True):
        left, _, right = np.linalg.svd(g, full_matrices=False)
        core = left.T @ u @ right.T / (0.2 * np.sqrt(max(u.shape)))
        np.testing.assert_allclose(core - np.diag(np.diag(core)), 0, atol=1e-3)
        assert 0.6 < np.diag(core).min() <= np.diag(core).max() < 1.3
        np.testing.assert_allclose(np.sqrt(np.mean(u**2)), 0.2, rtol=0.3)


def test_muon_leaves_the_rest_to_adam():
    leaf = jnp.linspace(-1, 1, 12).reshape(3, 4)
    params = {"words": {"embedding": leaf}, "norm": {"scale": leaf[0]}, "dense": {"kernel": leaf}}
    gradients = [jax.tree.map(lambda p, seed=seed: jnp.cos(p + seed), params) for seed in range(3)]
    adam = direction(OptimConfig(beta1=0.95, beta2=0.98, weight_decay=0.05), params, *gradients)
    muon = direction(MUON, params, *gradients)
    np.testing.assert_array_equal(muon["words"]["embedding"], adam["words"]["embedding"])
    np.testing.assert_array_equal(muon["norm"]["scale"], adam["norm"]["scale"])
    assert not np.allclose(muon["dense"]["kernel"], adam["dense"]["kernel"], rtol=0.1)


def test_muon_scales_what_adam_moves():
    params = {"norm": {"scale": jnp.ones(4)}, "dense": {"kernel": jnp.ones((2, 4))}}
    grads = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    whole = direction(MUON, params, grads)
    part = direction(dataclasses.replace(MUON, adam_rate=0.25), params, grads)
    np.testing.assert_allclose(part["norm"]["scale"], 0.25 * whole["norm"]["scale"], rtol=1e-6)
    np.testing.assert_array_equal(part["dense"]["kernel"], whole["dense"]["kernel"])


@pytest.mark.slow
def test_adafactor_is_equation_6():
    """A kernel large enough for rows and columns, and one that keeps all its squares."""
    shapes = {"wide": (128, 160), "small": (6, 4)}
    gradients = []
    rows, columns, squares = np.zeros(128), np.zeros(160), np.zeros((6, 4))
    for step in (1, 2, 3):
        gradients.append(jax.tree.map(lambda g, step=step: step * g, kernels(shapes, step)))
        wide, small = (np.float64(gradients[-1][name]["kernel"]) for name in ("wide", "small"))
        decay = 1 - step**-0.8
        rows = decay * rows + (1 - decay) * np.mean(wide**2, axis=1)
        columns = decay * columns + (1 - decay) * np.mean(wide**2, axis=0)
        squares = decay * squares + (1 - decay) * small**2
    wide = wide / np.sqrt(np.outer(rows, columns) / rows.mean())
    small = small / np.sqrt(squares)
    got = direction(OptimConfig(optimizer="adafactor"), kernels(shapes), *gradients)
    assert np.sqrt(np.mean(wide**2)) > 1.1
    for name, update in (("wide", wide), ("small", small)):
        expected = update / max(1, np.sqrt(np.mean(update**2)))
        np.testing.assert_allclose(got[name]["kernel"], expected, rtol=1e-4)


def test_adafactor_keeps_rows_and_columns_only():
    params = kernels({"wide": (128, 160)})
    state = make_transform(OptimConfig(optimizer="adafactor")).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 128 + 160 + 10


def test_adafactor_has_no_moments_to_keep_in_fewer_bits():
    with pytest.raises(UserError, match="moments is int8; adafactor has next to none to keep"):
        OptimConfig(optimizer="adafactor", moments="int8")
