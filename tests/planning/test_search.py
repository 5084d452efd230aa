"""The search itself, with a compiler that is a formula."""

import dataclasses

import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.parallel.mesh import MeshSpec
from unclip_jax.planning.chips import CHIPS, Slice
from unclip_jax.planning.plan import Memory, Plan
from unclip_jax.planning.search import Layout, fit

GIB = 2.0**30
SLICE = Slice("v5e:4x4", CHIPS["v5e"], [None] * 16)
START = Layout(mesh=MeshSpec(), accumulate=1, remat=False)


def search(state, activations, *, start=START, batch_size=64, indivisible=()):
    """What is tried where the state has `state` GiB in all and one example's activations `activations`."""

    def state_bytes(mesh):
        if mesh.fsdp in indivisible:
            raise UserError("no")
        return state * GIB / mesh.fsdp

    def attempt(layout):
        rows = batch_size / 16 / layout.accumulate
        total = state_bytes(layout.mesh) + rows * activations * GIB * (0.25 if layout.remat else 1)
        mesh = {"data": 16 // layout.mesh.fsdp, "fsdp": layout.mesh.fsdp, "tensor": 1}
        return Plan(
            topology=SLICE.name,
            num_chips=16,
            mesh=mesh,
            batch_size=batch_size,
            parameters=1,
            model_flops=1.0,
            hardware_flops=1.0,
            memory=Memory(total=total, limit=SLICE.chip.memory),
            compile_seconds=0.0,
        )

    tried = []
    for layout, plan in fit(start, attempt, state_bytes, SLICE):
        tried.append((layout.mesh.fsdp, layout.remat, layout.accumulate, plan.memory.fits))
    return tried


def test_what_fits_is_tried_once():
    assert search(4, 0.5) == [(1, False, 1, True)]


def test_the_state_decides_how_far_parameters_are_split():
    assert search(60, 0.5) == [(8, False, 1, True)]


def test_a_size_that_divides_no_parameter_is_left_out():
    assert search(60, 0.5, indivisible=(8,)) == [(16, False, 1, True)]


def test_then_blocks_are_recomputed():
    assert search(4, 6) == [(1, False, 1, False), (1, True, 1, True)]


def test_then_the_batch_is_cut_as_far_as_the_memory_asks_for():
    assert search(4, 30)[1:] == [(1, True, 1, False), (1, True, 4, True)]


def test_then_parameters_are_split_further():
    assert search(7, 40, batch_size=16)[-1] == (2, True, 1, True)


def test_nothing_fits():
    with pytest.raises(UserError, match="nothing that was tried fits v5e:4x4; take a larger slice"):
        search(4, 400, batch_size=16)
    with pytest.raises(UserError, match="the state alone does not fit v5e:4x4"):
        search(4000, 1)


def test_tensor_and_slices_stay():
    start = dataclasses.replace(START, mesh=MeshSpec(tensor=2, slices=2))
    assert search(30, 0.1, start=start) == [(4, False, 1, True)]
