"""Training an adapter is training the whole network, restricted to what the adapter can express."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.helpers import assert_close
from tests.stages import examples
from unclip_jax.adapters.lora import LoRAConfig, layers_of, merge
from unclip_jax.adapters.stage import BASE, AdaptedStage
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import compile_step
from unclip_jax.stages.encoders import Encoder, frozen_shardings
from unclip_jax.stages.settings import Options, SamplingSettings
from unclip_jax.stages.stage import Weights
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.state import abstract_state, init, state_shardings
from unclip_jax.training.step import example_keys, make_step

pytestmark = pytest.mark.usefixtures("quick_compile")
LORA = LoRAConfig(rank=2, alpha=3.0)


def adapted(kind):
    """(stage, frozen) of recipe tiny."""
    example = examples.example(kind)
    base = Encoder(network=example.stage.network, params=example.params)
    return AdaptedStage(base=example.stage, lora=LORA), example.frozen | {BASE: base}


def filled(stage, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32), shapes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "prior"])
def test_the_gradient_is_that_of_the_whole_network_through_the_merge(kind):
    """dL/dA = s dL/dW B^T and dL/dB = s A^T dL/dW, with dL/dW of full training at the merged weights."""
    example, (stage, frozen) = examples.example(kind), adapted(kind)
    params, keys = filled(stage), example_keys(0, jnp.int32(0), jnp.arange(examples.BATCH))

    def total(stage, params):
        return jnp.sum(stage.loss(params, params, frozen, example.batch, keys)[0])

    own = jax.jit(jax.value_and_grad(lambda params: total(stage, params)))(params)
    whole = jax.jit(jax.value_and_grad(lambda params: total(example.stage, params)))(stage.merged(params, frozen))
    assert_close(own[0], whole[0], terms=examples.BATCH)
    for path in layers_of(params):
        layer, gradient, dense = params, own[1], whole[1]
        for name in path.split("/"):
            layer, gradient, dense = layer[name], gradient[name], dense[name]
        a, b = layer["lora_A"]["kernel"], layer["lora_B"]["kernel"]
        outer = dense["kernel"]
        expected = {"lora_A": {"kernel": LORA.scale * outer @ b.T}, "lora_B": {"kernel": LORA.scale * a.T @ outer}}
        size = float(np.abs(outer).max() * max(np.abs(a).max(), np.abs(b).max()))
        assert_close(gradient, expected, terms=4096, size=max(size, 1e-12))


def test_a_convolutions_gradient_sums_over_its_places():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 4, 5)), jnp.float32)
    a, b, g = (
        jnp.asarray(np.random.default_rng(i).normal(size=size), jnp.float32)
        for i, size in enumerate([(3, 3, 4, 2), (1, 1, 2, 5), (3, 3, 4, 5)], 1)
    )

    def value(a, b):
        tree = {"c": {"lora_A": {"kernel": a}, "lora_B": {"kernel": b}}}
        return jnp.sum(g * merge({"c": {"kernel": w}}, tree, {"c": 0.5})["c"]["kernel"])

    of_a, of_b = jax.grad(value, (0, 1))(a, b)
    assert_close(of_a, 0.5 * jnp.einsum("yxio,ro->yxir", g, b[0, 0]), terms=8)
    assert_close(of_b[0, 0], 0.5 * jnp.einsum("yxio,yxir->ro", g, a), terms=36)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["prior", "upsampler_0"])
def test_it_samples_what_the_merged_weights_sample(part):
    system = tiny.system()
    base, weights = system.stage(part), system.weights(part)
    stage = AdaptedStage(base=base, lora=LORA)
    frozen = weights.frozen | {BASE: Encoder(network=base.network, params=weights.params)}
    params, options = filled(stage), Options(settings=SamplingSettings(steps=2))
    captions = tiny.batch(2, sizes=(8,))
    rows = {"tokens": captions["tokens"], "mask": captions["mask"]}
    if part == "upsampler_0":
        rows = {"image_8": jnp.asarray(captions["image_8"], jnp.float32) / 127.5 - 1}
    noise = stage.noise(jax.random.key(0), jnp.arange(2), options.settings)

    def sample(stage, weights):
        return jax.jit(stage.sample, static_argnums=0)(options, weights, rows, noise)

    merged = jax.tree.map(np.asarray, stage.merged(params, frozen))
    ours = sample(stage, Weights(params, frozen))
    assert_close(ours, sample(base, dataclasses.replace(weights, params=merged)), terms=4096)
    assert np.abs(np.asarray(ours) - np.asarray(sample(base, weights))).max() > 1e-3


@pytest.mark.slow
def test_a_step_trains_the_adapter_alone_on_any_mesh():
    example, (stage, frozen) = examples.example("prior"), adapted("prior")
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=1, ema_decay=0.5)
    states = {}
    for name, devices in (("one", jax.devices()[:1]), ("mesh", jax.devices()[:8])):
        mesh = make_mesh(MeshSpec() if name == "one" else MeshSpec(data=2, fsdp=2, tensor=2), devices)
        shardings, where = state_shardings(abstract_state(stage, optim, mesh)), frozen_shardings(frozen, mesh)
        step = compile_step(make_step(stage, optim, total_steps=9, seed=0), mesh, shardings, where)
        state, lying = init(stage, optim, mesh, jax.random.key(0)), jax.device_put(frozen, where)
        first, batch = jax.device_get(state.params), step.put(jax.device_get(example.batch))
        state, _ = step.run(state, lying, batch)
        state, metrics = step.run(state, lying, batch)
        states[name] = (jax.device_get(state.params), float(metrics["loss"]))
    assert states["one"][1] == pytest.approx(states["mesh"][1], rel=1e-4)
    moved = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), states["one"][0], first)
    assert min(jax.tree.leaves(moved)) > 0
    assert_close(states["mesh"][0], states["one"][0], terms=10**6)


def test_the_state_is_that_of_the_adapter():
    stage, _ = adapted("decoder")
    optim, mesh = OptimConfig(), make_mesh(MeshSpec(), jax.devices()[:1])
    own, whole = (
        sum(leaf.size for leaf in jax.tree.leaves(abstract_state(each, optim, mesh))) for each in (stage, stage.base)
    )
    adapter = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(stage.init, jax.random.key(0))))
    assert own - 4 * adapter < 10
    assert own < whole / 2


@pytest.mark.slow
def test_it_is_measured_and_shown_as_the_merged_weights_are():
    example, (stage, frozen) = examples.example("clip"), adapted("clip")
    params, keys = filled(stage), examples.keys()

    def seen(stage, params):
        weights = Weights(params, frozen)
        return stage.measure(params, frozen, example.batch, keys), stage.preview(weights, example.batch).values

    own = jax.jit(lambda params: seen(stage, params))(params)
    whole = jax.jit(lambda params: seen(example.stage, params))(stage.merged(params, frozen))
    assert_close(own, whole, terms=16)
    arrays = jax.device_get(own[0][1])
    assert stage.score(arrays) == example.stage.score(arrays)
    assert (stage.judged_by, stage.num_previewed) == (example.stage.judged_by, example.stage.num_previewed)
    apart = {"retrieval": 1.0}, {"retrieval": 0.1}, 100
    assert stage.memorised(*apart) and stage.memorised(*apart) == example.stage.memorised(*apart)
