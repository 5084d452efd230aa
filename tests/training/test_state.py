import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers import assert_trees_equal
from tests.training.toy import Toy
from unclip_jax.core.errors import UserError
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.state import abstract_state, init, start_from, state_shardings


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_abstract_equals_real(optimizer):
    mesh, optim = make_mesh(MeshSpec(data=2, fsdp=4)), OptimConfig(optimizer=optimizer)
    state = init(Toy(split=True), optim, mesh, jax.random.key(0))
    abstract = abstract_state(Toy(split=True), optim, mesh)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for real, planned in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (real.shape, real.dtype) == (planned.shape, planned.dtype)
        assert real.sharding.is_equivalent_to(planned.sharding, real.ndim)


@pytest.mark.parametrize(("optimizer", "copies"), [("adamw", 4), ("muon", 3)])
def test_moments_and_average_lie_as_their_parameter(optimizer, copies):
    """Muon keeps one moment of a kernel, where Adam keeps two."""
    mesh = make_mesh(MeshSpec(data=2, fsdp=4))
    shardings = state_shardings(abstract_state(Toy(split=True), OptimConfig(optimizer=optimizer), mesh))
    specs = {
        jax.tree_util.keystr(path): sharding.spec for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
    }
    split = [path for path, spec in specs.items() if spec == P(None, "fsdp")]
    assert len(split) == copies and all("['hidden']['kernel']" in path for path in split)
    assert {spec for path, spec in specs.items() if path not in split} == {P()}


@pytest.mark.slow
def test_values_do_not_depend_on_the_mesh():
    one = init(Toy(), OptimConfig(), make_mesh(MeshSpec(), jax.devices()[:1]), jax.random.key(3))
    eight = init(Toy(split=True), OptimConfig(), make_mesh(MeshSpec(fsdp=4)), jax.random.key(3))
    assert_trees_equal(one, eight)
    assert not np.array_equal(one.params["hidden"]["kernel"], Toy().init(jax.random.key(4))["hidden"]["kernel"])


def test_starts_at_zero():
    state = init(Toy(), OptimConfig(), make_mesh(MeshSpec()), jax.random.key(0))
    assert state.step.dtype == state.skipped.dtype == jnp.int32
    assert int(state.step) == int(state.skipped) == 0
    assert_trees_equal(state.ema, state.params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_starts_from_given_parameters():
    mesh = make_mesh(MeshSpec(data=2, fsdp=4))
    abstract = abstract_state(Toy(split=True), OptimConfig(), mesh)
    given = Toy().init(jax.random.key(9))
    state = start_from(given, abstract, OptimConfig())
    assert_trees_equal(state.params, given)
    assert_trees_equal(state.ema, given)
    assert int(state.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    kernel = state.params["hidden"]["kernel"]
    assert kernel.sharding.is_equivalent_to(abstract.params["hidden"]["kernel"].sharding, kernel.ndim)


def test_refuses_to_start_from_another_network():
    abstract = abstract_state(Toy(), OptimConfig(), make_mesh(MeshSpec()))
    given = Toy(hidden=8).init(jax.random.key(9))
    with pytest.raises(UserError, match=r"hidden/bias of shape \(8,\), the network \(16,\)"):
        start_from(given, abstract, OptimConfig())
    del given["out"]
    with pytest.raises(UserError, match="start from weights of the same model"):
        start_from(given, abstract, OptimConfig())
