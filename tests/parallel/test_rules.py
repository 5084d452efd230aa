import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from unclip_jax.core.errors import UserError
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.rules import REPLICATE, match_rules

PARAMS = {
    "in": {
        "kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32),
        "bias": jax.ShapeDtypeStruct((16,), jnp.float32),
    },
    "out": {"kernel": jax.ShapeDtypeStruct((16, 6), jnp.float32)},
}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshSpec(data=2, fsdp=4))


def test_first_match_decides(mesh):
    rules = (("in/kernel", P("fsdp")), ("kernel$", P(("data", "fsdp"), None)), (".*", P()))
    found = jax.tree.map(lambda s: s.spec, match_rules(rules, PARAMS, mesh))
    assert found == {"in": {"kernel": P(None, "fsdp"), "bias": P()}, "out": {"kernel": P(("data", "fsdp"), None)}}


def test_shardings_place_the_parameters(mesh):
    shardings = match_rules((("in/kernel", P(None, "fsdp")), (".*", P())), PARAMS, mesh)
    params = jax.device_put(jax.tree.map(lambda s: jnp.zeros(s.shape), PARAMS), shardings)
    assert params["in"]["kernel"].addressable_shards[0].data.shape == (8, 4)
    assert params["out"]["kernel"].sharding.is_fully_replicated


def test_a_spec_names_the_last_dimensions(mesh):
    shapes = {"dense": (8, 16), "conv": (3, 3, 8, 16), "stack": (5, 8, 16)}
    tree = {name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for name, shape in shapes.items()}
    found = match_rules((("kernel", P("fsdp", "data")),), tree, mesh)
    local = {name: found[name]["kernel"].shard_shape(shape) for name, shape in shapes.items()}
    assert local == {"dense": (2, 8), "conv": (3, 3, 2, 8), "stack": (5, 2, 8)}


def test_replicate_is_the_default(mesh):
    assert all(s.is_fully_replicated for s in jax.tree.leaves(match_rules(REPLICATE, PARAMS, mesh)))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("nowhere", P()), (".*", P())), "'nowhere' decides no parameter"),
        ((("kernel", P()), ("in/kernel", P()), (".*", P())), "'in/kernel' decides no parameter"),
        ((("kernel", P()),), "no sharding rule means the parameter in/bias"),
        ((("out/kernel", P(None, "fsdp")), (".*", P())), r"dimension 1 of out/kernel .* over 4 devices .*; 2 would"),
        ((("bias", P(None, "fsdp")), (".*", P())), "shards 2 dimensions, but the parameter in/bias"),
        ((("bias", P("model")), (".*", P())), "mesh axis 'model'"),
    ],
)
def test_mistakes_are_named(mesh, rules, message):
    with pytest.raises(UserError, match=message):
        match_rules(rules, PARAMS, mesh)
