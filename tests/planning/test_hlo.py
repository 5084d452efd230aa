"""A text as XLA writes it, shortened, and one that this machine's own compiler made."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.planning.hlo import Program

TEXT = """HloModule jit_step, is_scheduled=true

%fused_computation (p.0: bf16[16,32]) -> bf16[16,32] {
  %p.0 = bf16[16,32]{1,0} parameter(0)
  ROOT %n = bf16[16,32]{1,0} negate(%p.0)
}

%all-reduce-scatter.1 (input: f32[64,32]) -> f32[8,32] {
  %input = f32[64,32]{1,0} parameter(0)
  %ar = f32[64,32]{1,0} all-reduce(%input), channel_id=3, replica_groups=[2,8]<=[16], to_apply=%add
  ROOT %slice = f32[8,32]{1,0} dynamic-slice(%ar)
}

%body (arg: (s32[], bf16[5,16,32])) -> (s32[], bf16[5,16,32]) {
  %arg = (s32[], bf16[5,16,32]{2,1,0}) parameter(0)
  %stack = bf16[5,16,32]{2,1,0} get-tuple-element(%arg), index=1
  %one = bf16[16,32]{1,0:T(8,128)} fusion(%stack), kind=kLoop, calls=%fused_computation
  %ag = bf16[64,32]{1,0:T(8,128)S(1)} all-gather(%one), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %again = bf16[64,32]{1,0:T(8,128)S(1)} all-gather(%one), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %out = (s32[], bf16[5,16,32]{2,1,0}) tuple(%stack)
}

%condition (arg.1: (s32[], bf16[5,16,32])) -> pred[] {
  %arg.1 = (s32[], bf16[5,16,32]{2,1,0}) parameter(0)
  %bound = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%arg.1, %bound), direction=LT
}

ENTRY %main (a: f32[64,32]) -> f32[8,32] {
  %a = f32[64,32]{1,0} parameter(0)
  %t = (s32[], bf16[5,16,32]{2,1,0}) tuple(%a)
  %loop = (s32[], bf16[5,16,32]{2,1,0}) while(%t), condition=%condition, body=%body
  %p = f32[2,4]{1,0} collective-permute(%a), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %s = f32[3]{0} all-reduce(%a), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([4,2]T(1,0)) {'axis_0'}, to_apply=%add
  ROOT %rs = f32[8,32]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program():
    return Program(TEXT)


def test_how_often_a_computation_runs(program):
    assert program.times["main"] == program.times["all-reduce-scatter.1"] == 1
    assert program.times["body"] == program.times["fused_computation"] == 5


def test_collectives(program):
    found = {each.kind: (each.bytes_each, each.group, each.times) for each in program.collectives()}
    assert found == {
        "all-gather": (64 * 32 * 2, 4, 5),  # twice in the text, one channel
        "reduce-scatter": (64 * 32 * 4, 8, 1),
        "collective-permute": (2 * 4 * 4, 2, 1),
        "all-reduce": (3 * 4, 4, 1),
    }


def test_bytes_on_the_wire(program):
    sent = {each.kind: each.wire_bytes for each in program.collectives()}
    assert sent["all-gather"] == 5 * 3 / 4 * 64 * 32 * 2
    assert sent["reduce-scatter"] == 7 / 8 * 64 * 32 * 4
    assert sent["all-reduce"] == 2 * 3 / 4 * 3 * 4
    assert sent["collective-permute"] == 2 * 4 * 4


def test_memory(program):
    one, big = 16 * 32 * 2, 64 * 32 * 4
    # A round of the loop reads one entry of the stack; what is gathered into S(1) does not reach memory.
    body = (one + one) + one + one
    condition = 1 + (4 + one) + 4
    entry = (big + 2 * 4 * 4) + (big + 3 * 4) + (big + 8 * 32 * 4)
    assert program.memory_bytes() == entry + 5 * (body + condition)


def test_no_program():
    with pytest.raises(ValueError, match="ENTRY"):
        Program("nothing")


def test_what_this_machine_compiles():
    """A scanned stack of layers, split over eight devices: each layer is gathered once, in every round."""
    mesh = make_mesh(MeshSpec(data=1, fsdp=8))

    def layers(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    rows, kernels = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P(None, "fsdp", None))
    shapes = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((6, 32, 32), jnp.float32)
    compiled = jax.jit(layers, in_shardings=(rows, kernels), out_shardings=rows).lower(*shapes).compile()
    found = Program(compiled.as_text()).collectives()
    assert [(each.kind, each.group, each.times) for each in found] == [("all-gather", 8, 6)]
    assert found[0].bytes_each == 32 * 32 * 4
