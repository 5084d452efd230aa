"""The number of devices changes no stage's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.training.stages.examples import example
from unclip_jax.bundle import Part
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import compile_step, put_batch
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.optim import make_transform
from unclip_jax.training.state import State, abstract_state, state_shardings
from unclip_jax.training.step import make_step

pytestmark = pytest.mark.usefixtures("quick_compile")

OPTIM = OptimConfig(learning_rate=1e-3, warmup_steps=1)


def small(kind):
    """As few layers as there can be: what is at stake is how rows are split, and compiling takes the time."""
    stage, params, frozen, batch = example(kind)
    batch = jax.tree.map(np.asarray, batch)
    if kind == "decoder":
        width = stage.clip_spec.text.width
        spec = dataclasses.replace(stage.spec, attention_at=(), dropout=0.0, text=None, text_width=width)
        process = ProcessSpec(num_steps=100, variance="learned_range")
        params = tiny.weights(Part(kind="decoder", spec=spec, process=process), 7).params
        stage = dataclasses.replace(stage, spec=spec)
    return stage, params, frozen, batch


def losses(kind, devices):
    stage, params, frozen, batch = small(kind)
    mesh = make_mesh(MeshSpec(), jax.devices()[:devices])
    shardings = state_shardings(abstract_state(stage, OPTIM, mesh))
    zero = jnp.zeros((), jnp.int32)
    opt_state = make_transform(OPTIM).init(params)
    state = State(step=zero, params=params, ema=params, opt_state=opt_state, skipped=zero)
    # A copy each: the step takes the buffers of its state.
    state = jax.device_put(jax.tree.map(np.array, state), shardings)
    step = compile_step(make_step(stage, OPTIM, total_steps=3, seed=0), mesh, shardings)
    values = []
    for _ in range(3):
        state, metrics = step(state, frozen, put_batch(batch, mesh))
        values.append(float(metrics["loss"]))
    return values


@pytest.mark.parametrize("kind", ["clip", "decoder"])
def test_same_loss_on_one_device_and_on_eight(kind):
    one, eight = losses(kind, 1), losses(kind, 8)
    assert one[0] != one[2]
    # Sums over the batch are taken in another order.
    np.testing.assert_allclose(eight, one, rtol=1e-6)
