import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_trees_equal, count_traces
from tests.training.toy import BATCH, FROZEN, Toy, batches
from unclip_jax.core.errors import UserError
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import compile_step
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.optim import clip, make_transform
from unclip_jax.training.state import abstract_state, init, state_shardings
from unclip_jax.training.step import example_keys, make_step

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=2, weight_decay=0.1, ema_decay=0.9)


@functools.cache
def initial(stage, optim):
    return jax.device_get(init(stage, optim, make_mesh(MeshSpec(), jax.devices()[:1]), jax.random.key(0)))


@functools.cache
def compiled_step(stage, optim, mesh):
    shardings = state_shardings(abstract_state(stage, optim, mesh))
    return compile_step(make_step(stage, optim, total_steps=100, seed=7), mesh, shardings), shardings


def run(steps, *, optim=OPTIM, spec=None, devices=8, nan_at=(), stage=None):
    """(state, [metrics of every step]) of a few toy steps on the first `devices` devices."""
    stage, mesh = stage or Toy(), make_mesh(spec or MeshSpec(), jax.devices()[:devices])
    compiled, shardings = compiled_step(stage, optim, mesh)
    state = jax.device_put(initial(stage, optim), shardings)
    history = []
    for _, batch in zip(range(steps), batches(0, nan_at=nan_at), strict=False):
        state, metrics = compiled.run(state, FROZEN, compiled.put(batch))
        history.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state), history


@pytest.fixture(scope="module")
def one_device():
    return run(5, devices=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "accumulate"), [(MeshSpec(), 1), (MeshSpec(data=2, fsdp=2, tensor=2), 1), (MeshSpec(fsdp=2), 2)]
)
def test_same_numbers_on_any_mesh(one_device, spec, accumulate):
    _, expected = one_device
    _, got = run(5, spec=spec, optim=dataclasses.replace(OPTIM, accumulate=accumulate))
    assert expected[0]["loss"] != expected[4]["loss"]
    for name in ("loss", "grad_norm", "noisy_loss"):
        np.testing.assert_allclose([m[name] for m in got], [m[name] for m in expected], rtol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 16])
def test_microbatches_change_nothing(one_device, accumulate):
    state, expected = one_device
    got_state, got = run(5, optim=dataclasses.replace(OPTIM, accumulate=accumulate), devices=1)
    for name in expected[0]:
        np.testing.assert_allclose([m[name] for m in got], [m[name] for m in expected], rtol=1e-5, err_msg=name)
    # Adam divides by the root of small moments: rounding in the gradient grows there.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got_state.params, state.params)


@pytest.mark.slow
def test_muon_gives_the_same_numbers_on_a_sharded_kernel():
    """Its matrix products run over all of a kernel, wherever the parts lie."""
    muon = dataclasses.replace(OPTIM, optimizer="muon")
    mesh = make_mesh(MeshSpec(fsdp=4))
    shardings = state_shardings(abstract_state(Toy(split=True), muon, mesh))
    step = compile_step(make_step(Toy(), muon, total_steps=100, seed=7), mesh, shardings)
    state, losses = jax.device_put(initial(Toy(), muon), shardings), []
    for _, batch in zip(range(5), batches(0), strict=False):
        state, metrics = step.run(state, FROZEN, step.put(batch))
        losses.append(float(metrics["loss"]))
    _, expected = run(5, optim=muon, devices=1)
    np.testing.assert_allclose(losses, [m["loss"] for m in expected], rtol=1e-6)
    assert losses != [m["loss"] for m in run(5, devices=1)[1]]


def test_accumulate_must_divide():
    with pytest.raises(UserError, match="accumulate is 3, which does not divide the batch of 16"):
        run(1, optim=dataclasses.replace(OPTIM, accumulate=3))


@pytest.fixture(scope="module")
def written():
    """The first step written out: the state before it, and what it should give."""
    before, batch = initial(Toy(), OPTIM), jax.tree.map(jnp.asarray, next(batches(0)))

    @jax.jit
    def expected():
        key = jax.random.fold_in(jax.random.key(7), 0)
        keys = jnp.stack([jax.random.fold_in(key, row) for row in range(BATCH)])

        def mean_loss(params):
            errors, metrics = Toy().loss(params, params, FROZEN, batch, keys)
            return jnp.mean(errors), metrics

        (loss, metrics), grads = jax.value_and_grad(mean_loss, has_aux=True)(before.params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        updates, _ = make_transform(OPTIM).update(clip(grads, norm, OPTIM), before.opt_state, before.params)
        params = jax.tree.map(lambda p, u: p - 0.5e-2 * u, before.params, updates)
        ema = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, before.params, params)
        return {"loss": loss, "grad_norm": norm, "params": params, "ema": ema, "noisy_loss": metrics["noisy_loss"]}

    return expected()


def test_one_step_is_the_written_equations(written):
    after, (metrics,) = run(1, devices=1)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], written[name], rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], 0.5e-2, rtol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, after.params, written["params"])
    jax.tree.map(close, after.ema, written["ema"])
    assert int(after.step) == 1


def test_metrics_are_weighted_means(one_device, written):
    _, history = one_device
    values, weights = written["noisy_loss"]
    assert 0 < weights.sum() < BATCH
    np.testing.assert_allclose(history[0]["noisy_loss"], np.average(values, weights=weights), rtol=1e-5)
    assert np.isnan(history[0]["never"])


def test_keys_are_of_seed_step_and_row():
    data = jax.random.key_data(example_keys(3, jnp.int32(5), jnp.array([4, 0])))
    row_4 = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 5), 4)
    np.testing.assert_array_equal(data[0], jax.random.key_data(row_4))
    assert not np.array_equal(data[0], data[1])
    assert not np.array_equal(data, jax.random.key_data(example_keys(3, jnp.int32(6), jnp.array([4, 0]))))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nonfinite_step_changes_nothing_but_the_counts(accumulate):
    optim = dataclasses.replace(OPTIM, accumulate=accumulate)
    good, _ = run(2, optim=optim)
    bad, history = run(4, optim=optim, nan_at=(2, 3))
    assert [m["skipped"] for m in history] == [0, 0, 1, 2]
    assert np.isnan(history[2]["loss"])
    assert (int(bad.step), int(bad.skipped)) == (4, 2)
    for part in ("params", "ema", "opt_state"):
        assert_trees_equal(getattr(bad, part), getattr(good, part))


def test_skips_are_counted_in_a_row():
    _, history = run(4, nan_at=(0, 2))
    assert [m["skipped"] for m in history] == [1, 0, 1, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfiniteGradient(Toy):
    def loss(self, params, target, frozen, batch, keys):
        per_example, metrics = super().loss(params, target, frozen, batch, keys)
        # The root of 0 is finite, its slope is not.
        return per_example + jnp.sqrt(jnp.sum(params["out"]["bias"] * 0.0)), metrics


@pytest.mark.slow
def test_gradient_that_is_not_finite():
    state, history = run(1, stage=InfiniteGradient())
    assert np.isfinite(history[0]["loss"]) and not np.isfinite(history[0]["grad_norm"])
    assert int(state.skipped) == 1 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clashing(Toy):
    def loss(self, params, target, frozen, batch, keys):
        per_example, _ = super().loss(params, target, frozen, batch, keys)
        return per_example, {"loss": (per_example, per_example)}


def test_metric_names_do_not_clash():
    with pytest.raises(ValueError, match="loss"):
        run(1, stage=Clashing())


def test_traced_once():
    mesh = make_mesh(MeshSpec())
    shardings = state_shardings(abstract_state(Toy(), OPTIM, mesh))
    step, traces = count_traces(make_step(Toy(), OPTIM, total_steps=100, seed=0))
    compiled = compile_step(step, mesh, shardings)
    state = jax.device_put(initial(Toy(), OPTIM), shardings)
    for _, batch in zip(range(3), batches(0), strict=False):
        state, _ = compiled.run(state, FROZEN, compiled.put(batch))
    assert len(traces) == 1 and int(state.step) == 3
