import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.helpers import count_traces
from unclip_jax.core.errors import UserError
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import compile_step, put_batch


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshSpec(data=2, fsdp=2, tensor=2))


def test_put_batch_splits_rows(mesh):
    batch = {"x": np.arange(24, dtype=np.float32).reshape(8, 3), "label": np.arange(8)}
    placed = put_batch(batch, mesh)
    assert placed["x"].sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"))), 2)
    assert {shard.data.shape for shard in placed["x"].addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(placed["x"], batch["x"])
    np.testing.assert_array_equal(placed["label"], batch["label"])


def test_put_batch_that_does_not_divide(mesh):
    with pytest.raises(UserError, match="batch of 6 does not divide over 4 devices"):
        put_batch({"x": np.zeros((6, 1))}, mesh)


def test_compiled_step(mesh):
    def step(state, frozen, batch):
        total = jnp.sum(batch["x"]) * frozen["scale"]
        return {"w": state["w"] + total}, {"total": total}

    sharding = NamedSharding(mesh, P("fsdp"))
    counted, traces = count_traces(step)
    compiled = compile_step(counted, mesh, {"w": sharding})
    state = jax.device_put({"w": jnp.zeros(4)}, {"w": sharding})
    batch = {"x": np.ones((8, 2), np.float32)}
    metrics = {}
    for _ in range(3):
        before = state
        state, metrics = compiled.run(state, {"scale": jnp.float32(2)}, compiled.put(batch))
        assert before["w"].is_deleted()
    np.testing.assert_array_equal(state["w"], np.full(4, 96))
    assert state["w"].sharding.is_equivalent_to(sharding, 1)
    assert metrics["total"].sharding.is_fully_replicated and float(metrics["total"]) == 32
    assert len(traces) == 1
