"""How the devices share the work changes no stage's numbers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import tiny
from tests.stages.examples import example
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import compile_step
from unclip_jax.stages.encoders import frozen_shardings
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.state import abstract_state, start_from, state_shardings
from unclip_jax.training.step import make_step

pytestmark = pytest.mark.usefixtures("quick_compile")

OPTIM = OptimConfig(learning_rate=1e-3, warmup_steps=1)
STEPS = 10
LAYOUTS = {
    "8 x data": (MeshSpec(data=8), "jit"),
    "8 x fsdp": (MeshSpec(data=1, fsdp=8), "jit"),
    "4 x fsdp, 2 x tensor": (MeshSpec(data=1, fsdp=4, tensor=2), "jit"),
    "pmap 8": (MeshSpec(), "pmap"),
}


def small(kind, channel_mult=(1, 2)):
    """As few layers as there can be: what is at stake is how rows are split, and compiling takes the time.

    The second level of a U-Net is there for the mesh axis tensor, which splits wide ones.
    """
    stage, params, frozen, batch = example(kind)
    batch = jax.tree.map(np.asarray, batch)
    if kind in ("decoder", "upsampler"):
        network = dataclasses.replace(stage.network, channel_mult=channel_mult, dropout=0.0)
        if kind == "decoder":
            width = frozen["clip"].clip.text_tower.width
            lowest = network.image_size // 2 ** (len(channel_mult) - 1)
            network = dataclasses.replace(network, attention_resolutions=(lowest,), text=None, text_width=width)
        params = tiny.weights(network, 7)
        stage = dataclasses.replace(stage, network=network)
    return stage, params, frozen, batch


def losses(kind, spec, backend="jit", devices=8, **options):
    stage, params, frozen, batch = small(kind, **options)
    mesh = make_mesh(spec, jax.devices()[:devices])
    abstract = abstract_state(stage, OPTIM, mesh)
    state = start_from(params, abstract, OPTIM)
    shardings = frozen_shardings(frozen, mesh)
    frozen = jax.device_put(frozen, shardings)
    where = state_shardings(abstract)
    step = make_step(stage, OPTIM, total_steps=STEPS, seed=0)
    compiled = compile_step(step, mesh, where, shardings, backend)
    values = []
    for _ in range(STEPS):
        state, metrics = compiled.run(state, frozen, compiled.put(batch))
        values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(values)


@functools.cache
def on_one_device(kind, **options):
    return losses(kind, MeshSpec(), devices=1, **options)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["clip", "prior", "decoder", "upsampler"])
def test_same_losses_as_on_one_device(kind, layout):
    one, eight = on_one_device(kind), losses(kind, *LAYOUTS[layout])
    assert one[0, 0] != one[-1, 0]
    # Sums over the batch are taken in another order.
    np.testing.assert_allclose(eight[:, 0], one[:, 0], rtol=1e-6)
