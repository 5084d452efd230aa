"""Steps compiled for TPU slices that are only described."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from tests.planning.libtpu import needs_libtpu
from unclip_jax.core.errors import UserError
from unclip_jax.data.config import DataConfig
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.nn import transformer
from unclip_jax.parallel.mesh import MeshSpec
from unclip_jax.planning import chips
from unclip_jax.planning.chips import describe
from unclip_jax.planning.plan import plan_training
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.stage_configs import DecoderConfig, PriorConfig

pytestmark = needs_libtpu

# Rows that are no parameter's dimension: of the batch, and of four devices.
ROWS, GROUP = 352, 88
OPTIM = OptimConfig(learning_rate=1e-4)
RUN = RunConfig(workdir="runs/none", steps=1000)
TEXT = TextSpec(vocab_size=512, context=16, width=256, num_layers=2, num_heads=4, eos_id=511)
CLIP = CLIPSpec(
    embed_dim=256,
    vision=VisionSpec(image_size=32, patch_size=16, width=256, num_layers=2, num_heads=4),
    text=TEXT,
    dtype="bfloat16",
    scan=True,
)
STACK = {"dtype": "bfloat16", "remat": True, "scan": True}
CONFIGS = {
    "prior": PriorConfig(
        model=PriorSpec(embed_dim=256, context=16, text_width=256, width=256, num_layers=6, num_heads=4, **STACK),
        data=DataConfig(batch_size=ROWS),
        optim=OPTIM,
        run=RUN,
    ),
    "decoder": DecoderConfig(
        model=UNetSpec(
            image_size=8,
            channels=128,
            channel_mult=(1, 1),
            num_blocks=1,
            learned_sigma=True,
            attention_resolutions=(4,),
            embed_dim=256,
            context_width=256,
            text_width=256,
            **STACK | {"remat": "products"},
        ),
        data=DataConfig(batch_size=ROWS),
        optim=OPTIM,
        run=RUN,
    ),
}


def plan_of(kind, mesh=None, topology="v5e:4x4", optim=OPTIM, batch_size=ROWS):
    mesh = MeshSpec(data=4, fsdp=4) if mesh is None else mesh
    config = CONFIGS[kind]
    config = dataclasses.replace(config, data=DataConfig(batch_size=batch_size))
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=False))
    return plan_training(config, plain, {"clip": CLIP}, optim, describe(topology), mesh)


@pytest.fixture(scope="module")
def plans():
    """Each made when it is first asked for: to make one, the compiler for TPUs takes up to a gigabyte."""
    return functools.cache(plan_of)


def activations(plan):
    """Collectives that copy or add up numbers of more rows than a device has."""
    found = []
    for each in plan.collectives:
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]+)\]", each.shape):
            whole = {ROWS, GROUP} & set(map(int, sizes.split(",")))
            if each.kind in ("all-gather", "all-reduce") and dtype in ("bf16", "f32") and whole:
                found.append((each.kind, each.shape, each.source))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_no_activation_is_copied_to_every_device(plans, kind):
    assert activations(plans(kind)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_parameters_are_gathered_a_layer_at_a_time(plans, kind):
    gathered = [each for each in plans(kind).collectives if each.kind == "all-gather"]
    assert gathered and {each.group for each in gathered} <= {4, 16}
    # The largest kernel of one layer: the MLP's in the prior, a convolution of the widest level in the decoder.
    largest = {"prior": 256 * 1024, "decoder": 9 * 256 * 128}[kind]
    assert max(each.bytes_each for each in gathered) <= 2 * largest
    # Every layer of the prior, in the forward pass and in the backward pass, which recomputes.
    if kind == "prior":
        assert max(each.times for each in gathered) == 6


@pytest.mark.slow
def test_without_the_layout_of_rows_activations_are_gathered(monkeypatch):
    """What the first test would see."""
    monkeypatch.setattr(transformer, "shard_batch", lambda x: x)
    assert activations(plan_of("prior"))


@pytest.mark.slow
def test_what_a_plan_says(plans):
    plan = plans("prior")
    assert (plan.num_chips, plan.mesh) == (16, {"data": 4, "fsdp": 4, "tensor": 1})
    assert plan.memory.fits and plan.memory.temporaries > 0
    # Parameters, average and two moments, a quarter each, and the frozen CLIP's.
    frozen = sum(leaf.size for leaf in jax.tree.leaves(CLIP.abstract_params()))
    state = (4 * plan.parameters + frozen) * 4 / 4
    assert state < plan.memory.arguments < 1.2 * state
    # Recomputation repeats the forward pass of the blocks.
    assert 1.1 < plan.hardware_flops / plan.model_flops < 4 / 3
    times = plan.times
    assert times.step == max(times.compute, times.memory, times.links) and 0 < times.mfu < 1
    assert times.compute == pytest.approx(plan.hardware_flops / (16 * 197e12))


@pytest.mark.parametrize("kind", chips.EXAMPLES)
def test_memory_is_what_the_compiler_allows(kind):
    slice_ = describe(f"{kind}:2x2" + ("x1" if kind in ("v4", "v5p", "tpu7x") else ""))
    assert slice_.num_chips == 4
    where = jax.sharding.SingleDeviceSharding(slice_.devices[0])
    too_much = jax.ShapeDtypeStruct((2**38,), jnp.float32, sharding=where)
    with pytest.raises(jax.errors.JaxRuntimeError, match="exceeds available HBM") as caught:
        jax.jit(lambda x: (jnp.sin(x), jnp.cos(x))).lower(too_much).compile()
    allowed = float(re.search(r"available HBM \(([\d.]+)G\)", str(caught.value))[1])
    assert slice_.chip.memory / slice_.chip.cores == pytest.approx(allowed * 2**30)


@pytest.mark.slow
def test_does_not_fit(monkeypatch):
    """The compiler itself says so; it knows the chip."""
    config = CONFIGS["prior"]
    deep = dataclasses.replace(config.model, remat=False, scan=True, num_layers=48, width=1024, num_heads=16)
    monkeypatch.setitem(CONFIGS, "prior", dataclasses.replace(config, model=deep))
    plan = plan_of("prior", MeshSpec(data=16), batch_size=16 * 512)
    assert not plan.memory.fits and plan.memory.total > plan.memory.limit == pytest.approx(15.75 * 2**30)
    assert plan.times is None and plan.traffic is None


def test_a_batch_that_does_not_divide():
    with pytest.raises(UserError, match="a batch of 40 does not divide over 16 devices; .* such as 32 or 48"):
        plan_of("prior", batch_size=40)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5e:3x3", "libtpu knows no topology 'v5e:3x3' .*; give v5e:4x4, v5e:8x8 or v5e:16x16"),
        ("a100:8", "no chip 'a100' in topology 'a100:8'; use one of v4, v5e, v5p, v6e, tpu7x"),
    ],
)
def test_unknown_topologies(topology, message):
    with pytest.raises(UserError, match=message):
        describe(topology)


@pytest.mark.parametrize("topology", ["v5e:16x16", "v5p:4x4x8", "v6e:16x16", "tpu7x:4x4x4"])
def test_slices_of_the_readme(topology):
    slice_ = describe(topology)
    kind, _, sizes = topology.partition(":")
    assert slice_.num_chips == eval(sizes.replace("x", "*"))
    assert slice_.chip is chips.CHIPS[kind]


def test_slices_joined_by_a_network():
    from unclip_jax.parallel.mesh import make_mesh

    devices = describe("v5e:4x4", 2).devices
    mesh = make_mesh(MeshSpec(data=-1, fsdp=4, slices=2), devices)
    # fsdp and half of data stay within a slice.
    assert mesh.devices.shape == (8, 4, 1)
    assert [{device.slice_index for device in row.ravel()} for row in mesh.devices] == [{0}] * 4 + [{1}] * 4
    with pytest.raises(UserError, match="mesh.slices is 4, but the devices lie in 2; set it to 2"):
        make_mesh(MeshSpec(data=-1, fsdp=4, slices=4), devices)
