"""States of the optimiser in fewer numbers, on meshes and in checkpoints."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers import assert_trees_equal
from tests.training.toy import FROZEN, Toy, batches
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import compile_step
from unclip_jax.training.checkpoint import Checkpoints, Meta
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.optim import make_transform
from unclip_jax.training.state import abstract_state, init, state_shardings
from unclip_jax.training.step import make_step

pytestmark = pytest.mark.usefixtures("quick_compile")

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=10, ema_decay=0.9)
# A kernel split by its columns, by its rows, and the rest whole.
RULES = (("hidden/kernel", P(None, "fsdp")), ("out/kernel", P("fsdp", None)), (".*", P()))
WIDE_RULES = (("lifted/kernel", P("fsdp", None)), *RULES)
FEWER = pytest.mark.parametrize("moments", ["bfloat16", "int8"])
# Every optimiser and every kind of moments; compiling is what takes the time.
KINDS = pytest.mark.parametrize(
    ("optimizer", "moments"), [("adamw", "int8"), ("muon", "bfloat16"), ("adafactor", "float32")]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split(Toy):
    def sharding_rules(self):
        return RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wide(Toy):
    """A toy with a kernel whose second moment Adafactor takes apart."""

    def sharding_rules(self):
        return WIDE_RULES if self.split else super().sharding_rules()

    def init(self, key):
        return super().init(key) | {"lifted": {"kernel": jax.random.normal(key, (256, 128)) / 16}}

    def loss(self, params, target, frozen, batch, keys):
        errors, metrics = super().loss(params, target, frozen, batch, keys)
        lifted = jnp.tile(batch["x"], (1, 32)) @ params["lifted"]["kernel"]
        return errors + 0.1 * jnp.mean(jnp.square(lifted - 1), -1), metrics


@KINDS
def test_abstract_equals_real(optimizer, moments):
    mesh, optim = make_mesh(MeshSpec(data=2, fsdp=4)), OptimConfig(optimizer=optimizer, moments=moments)
    state = init(Wide(split=True), optim, mesh, jax.random.key(0))
    abstract = abstract_state(Wide(split=True), optim, mesh)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for real, planned in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (real.shape, real.dtype) == (planned.shape, planned.dtype)
        assert real.sharding.is_equivalent_to(planned.sharding, real.ndim)


def specs(optim, stage):
    """The specs of the optimiser's state by shape and type, where they are not `P()`."""
    abstract = abstract_state(stage, optim, make_mesh(MeshSpec(data=2, fsdp=4))).opt_state
    found = [(leaf.shape, str(leaf.dtype), leaf.sharding.spec) for leaf in jax.tree.leaves(abstract)]
    return sorted((each for each in found if each[2] != P()), key=str)


def test_maxima_of_rows_lie_as_the_rows():
    columns, rows = P(None, "fsdp"), P("fsdp", None)
    assert specs(OptimConfig(moments="int8"), Split()) == [
        ((16, 1), "float32", rows),
        ((16, 1), "float32", rows),
        ((16, 8), "int8", rows),
        ((16, 8), "uint8", rows),
        ((9, 16), "int8", columns),
        ((9, 16), "uint8", columns),
    ]


def test_means_of_adafactor_are_whole():
    found = specs(OptimConfig(optimizer="adafactor"), Wide(split=True))
    assert [shape for shape, _, _ in found] == [(16, 8), (9, 16)]
    transform = make_transform(OptimConfig(optimizer="adafactor"))
    assert {(256,), (128,)} <= {leaf.shape for leaf in jax.tree.leaves(transform.init(Wide().init(jax.random.key(0))))}


@functools.cache
def prepared(optim, spec, devices):
    """The state before the first step, on the host, how it lies, and the compiled step."""
    stage, mesh = Wide(split=spec.fsdp > 1), make_mesh(spec, jax.devices()[:devices])
    state = init(stage, optim, mesh, jax.random.key(0))
    shardings = state_shardings(state)
    step = compile_step(make_step(stage, optim, total_steps=100, seed=7), mesh, shardings)
    return jax.device_get(state), shardings, step


def run(optim, spec, devices, steps=4, nan_at=()):
    state, shardings, step = prepared(optim, spec, devices)
    state, losses = jax.device_put(state, shardings), []
    for _, batch in zip(range(steps), batches(0, nan_at=nan_at), strict=False):
        state, metrics = step.run(state, FROZEN, step.put(batch))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.slow
@KINDS
def test_same_losses_on_split_kernels(optimizer, moments):
    optim = dataclasses.replace(OPTIM, optimizer=optimizer, moments=moments)
    _, one = run(optim, MeshSpec(), 1)
    _, eight = run(optim, MeshSpec(data=2, fsdp=4), 8)
    assert one[0] != one[3]
    # Gradients are summed in another order; where one rounds otherwise, a moment may go to the other neighbour.
    np.testing.assert_allclose(eight, one, rtol=1e-6 if moments == "float32" else 1e-5)


@pytest.mark.slow
@FEWER
def test_rounds_alike_on_any_number_of_devices(moments):
    """Bit for bit, given the same gradients."""
    transform = make_transform(OptimConfig(moments=moments))
    states = []
    grads = [Toy().init(jax.random.key(seed)) for seed in (1, 2, 3)]
    for mesh, stage in (
        (make_mesh(MeshSpec(), jax.devices()[:1]), Toy()),
        (make_mesh(MeshSpec(data=1, fsdp=4, tensor=2)), Split()),
    ):
        shardings = state_shardings(abstract_state(stage, OptimConfig(moments=moments), mesh))
        update = jax.jit(
            lambda g, state: transform.update(g, state, g)[1],
            in_shardings=(shardings.params, shardings.opt_state),
            out_shardings=shardings.opt_state,
        )
        state = jax.device_put(transform.init(grads[0]), shardings.opt_state)
        for g in grads:
            state = update(g, state)
        states.append(jax.device_get(state))
    assert_trees_equal(*states)


def test_draws_differ_by_step_and_place():
    leaf = jnp.full((64, 64), 1.003)
    state = make_transform(OptimConfig(moments="bfloat16")).init({"a": leaf, "b": leaf})
    transform = make_transform(OptimConfig(moments="bfloat16", beta1=0.0))
    _, first = transform.update({"a": leaf, "b": leaf}, state, {"a": leaf, "b": leaf})
    _, second = transform.update({"a": leaf, "b": leaf}, first, {"a": leaf, "b": leaf})
    mu = [np.float32(s[0].inner.mu[name]) for s in (first, second) for name in ("a", "b")]
    for i in range(4):
        for other in mu[i + 1 :]:
            assert 0.2 < np.mean(mu[i] != other) < 0.6


@pytest.mark.slow
@KINDS
def test_bad_step_changes_no_moment(optimizer, moments):
    optim = dataclasses.replace(OPTIM, optimizer=optimizer, moments=moments)
    spec = MeshSpec(data=2, fsdp=4)
    good, _ = run(optim, spec, 8, steps=2)
    bad, losses = run(optim, spec, 8, steps=4, nan_at=(2, 3))
    assert np.isnan(losses[2]) and int(bad.skipped) == 2
    for part in ("params", "ema", "opt_state"):
        assert_trees_equal(getattr(bad, part), getattr(good, part))


@pytest.mark.slow
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    optim: OptimConfig
    run: RunConfig = RunConfig(workdir="here", steps=5)


@pytest.mark.slow
@KINDS
def test_checkpoints_hold_it(optimizer, moments, tmp_path):
    optim, spec = dataclasses.replace(OPTIM, optimizer=optimizer, moments=moments), MeshSpec(data=2, fsdp=4)
    saved, _ = run(optim, spec, 8, steps=2)
    checkpoints = Checkpoints(tmp_path, meta=Meta(kind="toy", config=Config(optim=optim)), keep=1)
    try:
        checkpoints.save(2, saved, {})
        checkpoints.wait()
        for layout, split in ((make_mesh(spec), True), (make_mesh(MeshSpec(), jax.devices()[:1]), False)):
            abstract = abstract_state(Wide(split=split), optim, layout)
            restored, _ = checkpoints.restore(abstract)
            assert_trees_equal(restored, saved)
            for leaf, planned in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
                assert leaf.dtype == planned.dtype and leaf.sharding.is_equivalent_to(planned.sharding, leaf.ndim)
    finally:
        checkpoints.close()
