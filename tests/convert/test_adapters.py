"""Files of adapters: every dialect means the same, what is written is read again, and what is wrong is said."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny
from tests.helpers import assert_trees_equal
from unclip_jax.adapters.lora import LoRAConfig, kernels_of, layers_of, merge, new_adapter
from unclip_jax.convert.adapter_files import CONFIG, METADATA, WEIGHTS, read_adapter
from unclip_jax.convert.adapters import fit, save_adapter, slots
from unclip_jax.core.errors import UserError
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.models.parameters import flatten
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.systems.adapting import Adapter, adapt

RNG = np.random.default_rng(0)
Q = "transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def system():
    """The tiny cascade, its decoder of Karlo's kind: nothing in it that PyTorch's has not."""
    whole = tiny.system()
    network = whole.stage("decoder").network
    karlo = dataclasses.replace(network, text=None, text_width=16, null="empty_caption", num_image_tokens=2)
    stage = dataclasses.replace(whole.stage("decoder"), network=karlo)
    params = whole.params | {"decoder": tiny.weights(karlo, 3)}
    return dataclasses.replace(whole, stages=whole.stages | {"decoder": stage}, params=params)


def adapter(network, part, lora=LoRAConfig(rank=2, alpha=3.0), base=None):  # noqa: B008  # frozen
    shapes = jax.eval_shape(lambda key: new_adapter(network.abstract_params(), lora, key), jax.random.key(0))
    params = jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape).astype(np.float32), shapes)
    return Adapter(name="x", part=part, params=params, scales=dict.fromkeys(layers_of(params), lora.scale), base=base)


def pair(rank=2, width=16, out=16):
    return (RNG.standard_normal(size).astype(np.float32) for size in ((rank, width), (out, rank)))


def write(path, tensors, **config):
    about = {METADATA: json.dumps(config)} if config else None
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, about)
    return path


def networks():
    found = dict(tiny.system().networks)
    karlo = UNetSpec(
        image_size=8, channels=8, channel_mult=(1, 2), num_blocks=1, groups=4, head_channels=8, embed_dim=16,
        learned_sigma=True, attention_resolutions=(4,), context_width=16, text_width=16, null="empty_caption",
        num_image_tokens=2,
    )  # fmt: skip
    found["karlo"] = karlo
    found["kandinsky"] = PriorSpec(embed_dim=16, context=48, text_width=16, width=16, num_layers=1, num_heads=2)
    found["experts"] = TimestepExperts(expert=found["upsampler_0"], boundaries=(1.0,))
    return found


def alone(part, network):
    """A system of one network."""
    if part == "clip":
        return dataclasses.replace(tiny.system(), stages={})
    stage = dataclasses.replace(tiny.system().stages["prior"], network=network)
    return dataclasses.replace(tiny.system(), encoders={}, stages={part: stage})


@pytest.mark.parametrize("part", ["clip", "prior", "decoder", "upsampler_0", "karlo", "kandinsky", "experts"])
def test_what_is_written_is_read_again_to_the_bit(part, tmp_path):
    network = networks()[part]
    targets = ("expert_1/",) if part == "experts" else ("",)
    own = adapter(network, part, LoRAConfig(rank=3, alpha=7.0, targets=targets), base="ab" * 32)
    save_adapter(tmp_path / "a.safetensors", own, network)
    (back,) = fit(read_adapter(tmp_path / "a.safetensors"), alone(part, network))
    assert (back.part, back.base) == (part, own.base)
    assert_trees_equal(back.params, own.params)
    assert back.scales == pytest.approx(own.scales)
    names = set(load_file(tmp_path / "a.safetensors"))
    if part in ("prior", "kandinsky"):
        assert f"{Q}.lora_A.weight" in names
    if part == "karlo":
        assert {"down_blocks.0.resnets.0.conv1.lora_B.weight", "text_proj.embedding_proj.lora_A.weight"} <= names
    if part == "decoder":
        assert "down_0_0.conv_in.lora_A.weight" in names


def test_layouts_are_those_of_torch(tmp_path):
    network = networks()["karlo"]
    save_adapter(tmp_path / "a.safetensors", adapter(network, "decoder"), network)
    shapes = {name: value.shape for name, value in load_file(tmp_path / "a.safetensors").items()}
    assert shapes["conv_in.lora_A.weight"] == (2, 3, 3, 3)
    assert shapes["conv_in.lora_B.weight"] == (8, 2, 1, 1)
    assert shapes["down_blocks.1.resnets.0.conv_shortcut.lora_A.weight"] == (2, 8, 1, 1)
    assert shapes["down_blocks.1.resnets.0.conv_shortcut.lora_B.weight"] == (16, 2, 1, 1)
    assert shapes["down_blocks.1.attentions.0.add_k_proj.lora_A.weight"] == (2, 16)


@pytest.mark.slow
def test_merging_here_is_merging_there(tmp_path):
    """W' = W + s B A in PyTorch's layout, for every kernel, by the importer's own name map."""
    network = networks()["karlo"]
    own, params = adapter(network, "decoder"), tiny.weights(network, 5)
    save_adapter(tmp_path / "a.safetensors", own, network)
    theirs, merged = load_file(tmp_path / "a.safetensors"), flatten(merge(params, own.params, own.scales))
    for name, (entry, _) in slots("decoder", network)[0].layers.items():
        a, b = theirs[f"{name}.lora_A.weight"], theirs[f"{name}.lora_B.weight"]
        update = (b.reshape(len(b), -1) @ a.reshape(len(a), -1)).reshape(len(b), *a.shape[1:])
        weight = entry.layout.to_theirs(np.asarray(flatten(params)[entry.ours]))
        ours = entry.layout.to_theirs(np.asarray(merged[entry.ours]))
        np.testing.assert_allclose(ours, weight + 1.5 * update, rtol=1e-5, atol=1e-5, err_msg=name)


DIALECTS = {
    "diffusers": lambda a, b: {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b},
    "named": lambda a, b: {f"{Q}.lora_A.default.weight": a, f"{Q}.lora_B.default.weight": b},
    "peft": lambda a, b: {f"base_model.model.{Q}.lora_A.weight": a, f"base_model.model.{Q}.lora_B.weight": b},
    "prefixed": lambda a, b: {f"prior.{Q}.lora_A.weight": a, f"prior.{Q}.lora_B.weight": b},
    "transformer": lambda a, b: {f"transformer.{Q}.lora_A.weight": a, f"transformer.{Q}.lora_B.weight": b},
    "processor": lambda a, b: {
        "transformer_blocks.0.attn1.processor.to_q_lora.down.weight": a,
        "transformer_blocks.0.attn1.processor.to_q_lora.up.weight": b,
    },
    "linear": lambda a, b: {f"{Q}.lora.down.weight": a, f"{Q}.lora.up.weight": b},
    "kohya": lambda a, b: {
        "lora_prior_transformer_blocks_0_attn1_to_q.lora_down.weight": a,
        "lora_prior_transformer_blocks_0_attn1_to_q.lora_up.weight": b,
    },
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_means_the_same(dialect, tmp_path, system):
    a, b = pair()
    (found,) = fit(read_adapter(write(tmp_path / "a.safetensors", DIALECTS[dialect](a, b))), system)
    assert found.part == "prior"
    expected = {"lora_A": {"kernel": a.T}, "lora_B": {"kernel": b.T}}
    assert_trees_equal(found.params, {"transformer": {"block_0": {"attention": {"query": expected}}}})
    assert found.scales == {"transformer/block_0/attention/query": 1.0}


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("mid_block.attentions.0.processor.to_out_lora", "middle_attention/out"),
        ("mid_block.attentions.0.processor.add_k_proj_lora", "middle_attention/context_key"),
        ("unet.mid_block.attentions.0.processor.add_v_proj_lora", "middle_attention/context_value"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora", "text_blocks/block_0/attention/query"),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.out_proj.lora_linear_layer",
            "text_blocks/block_0/attention/out",
        ),
    ],
)
def test_processors_of_old(old, now, tmp_path, system):
    a, b = pair()
    (found,) = fit(
        read_adapter(
            write(tmp_path / "a", {f"{old}.down.weight": a, f"{old}.up.weight": b}).rename(tmp_path / "a.safetensors")
        ),
        system,
    )
    assert layers_of(found.params) == [now]


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1),
        ({"r": 2, "lora_alpha": 8}, 4),
        ({"r": 2, "lora_alpha": 8, "use_rslora": True}, 8 / np.sqrt(2)),
        ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 3}}, 1.5),
        ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"to_k": 3}}, 4),
        ({"prior.lora_alpha": 8}, 4),
    ],
)
def test_scales(config, scale, tmp_path, system):
    a, b = pair()
    prefix = "prior." if "prior.lora_alpha" in config else ""
    tensors = {f"{prefix}{name}": value for name, value in DIALECTS["diffusers"](a, b).items()}
    (found,) = fit(read_adapter(write(tmp_path / "a.safetensors", tensors, **config)), system)
    assert list(found.scales.values()) == pytest.approx([scale])


def test_alpha_of_kohya_and_a_folder_of_pefts(tmp_path, system):
    a, b = pair()
    kohya = DIALECTS["kohya"](a, b)
    kohya[next(iter(kohya)).replace("lora_down.weight", "alpha")] = np.float32(1).reshape(())
    (found,) = fit(read_adapter(write(tmp_path / "k.safetensors", kohya)), system)
    assert list(found.scales.values()) == [0.5]
    (tmp_path / "peft").mkdir()
    write(tmp_path / "peft" / "adapter_model.safetensors", DIALECTS["peft"](a, b))
    (tmp_path / "peft" / CONFIG).write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 6}')
    (found,) = fit(read_adapter(tmp_path / "peft"), system)
    assert list(found.scales.values()) == [3.0]


def test_a_file_may_adapt_several_parts(tmp_path, system):
    a, b = pair()
    q = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    both = DIALECTS["prefixed"](a, b) | {f"{q}.lora_A.weight": a, f"{q}.lora_B.weight": b}
    config = {"prior.lora_alpha": 4, "text_encoder.lora_alpha": 6}
    found = fit(read_adapter(write(tmp_path / "a.safetensors", both, **config)), system)
    assert {each.part: list(each.scales.values()) for each in found} == {"prior": [2.0], "clip": [3.0]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"x.bias": np.ones(2)}, "tensor x.bias is no part of a LoRA"),
        (lambda t: t | {f"{Q}.lora_magnitude_vector": np.ones(2)}, "lora_magnitude_vector is no part of a LoRA"),
        (lambda t: {name: value for name, value in t.items() if "lora_A" in name}, "to_q has no B"),
        (lambda t: {name.replace("to_q", "to_x"): value for name, value in t.items()}, "to_x is a layer of no network"),
        (lambda t: t | {name.replace("to_q", "to_x"): value for name, value in t.items()}, "prior has no layer .*to_x"),
        (lambda t: dict.fromkeys(t, np.ones((2, 2), np.float32)), r"\[2, 2\] and .*, but that of prior is \[16, 16\]"),
        (lambda t: {name: value * np.nan for name, value in t.items()}, "not finite"),
        (lambda t: {name: value.reshape(-1) for name, value in t.items()}, "has matrices of shape"),
        (lambda t: t | {f"{Q}.alpha": np.ones(3, np.float32)}, "no single number"),
        (lambda t: t | {f"base_model.model.{name}": value for name, value in t.items()}, "is there twice"),
        (lambda t: {"x" * 600: np.ones(1, np.float32)}, "is no part of a LoRA"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(change, words, tmp_path, system):
    path = write(tmp_path / "a.safetensors", change(DIALECTS["diffusers"](*pair())))
    with pytest.raises(UserError, match=words) as caught:
        fit(read_adapter(path), system)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LOHA"}, "of type 'LOHA'"),
        ({"use_dora": True}, "has use_dora"),
        ({"lora_alpha": "much"}, "lora_alpha of layer .* is much, no number"),
        ({"lora_alpha": 1, "alpha_pattern": {"(a+)+": 2}}, "more than a layer's name"),
    ],
)
def test_configs_that_mean_something_else(config, words, tmp_path, system):
    path = write(tmp_path / "a.safetensors", DIALECTS["diffusers"](*pair()), **config)
    with pytest.raises(UserError, match=words):
        fit(read_adapter(path), system)


@pytest.mark.slow
def test_damaged_files_end_in_a_line(tmp_path, system):
    """Every byte of the header changed, and every length cut: read, or refused in one line."""
    whole = write(tmp_path / "a.safetensors", DIALECTS["diffusers"](*pair()), lora_alpha=4).read_bytes()
    rng, refused = np.random.default_rng(1), 0
    for i in range(400):
        data = bytearray(whole)
        if i % 2:
            data = data[: int(rng.integers(len(data)))]
        else:
            data[int(rng.integers(400))] = int(rng.integers(256))
        (tmp_path / "b.safetensors").write_bytes(data)
        try:
            fit(read_adapter(tmp_path / "b.safetensors"), system)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200


def test_folders_without_an_adapter(tmp_path):
    with pytest.raises(UserError, match=f"holds no {re.escape(WEIGHTS)}"):
        read_adapter(tmp_path)
    with pytest.raises(UserError, match="is missing"):
        read_adapter(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"is no \.safetensors"):
        read_adapter(tmp_path / "a.txt")


def test_which_of_several_is_said(tmp_path, system):
    network = TimestepExperts(expert=system.stages["upsampler_0"].network, boundaries=(1.0,))
    stage = dataclasses.replace(system.stages["upsampler_0"], network=network)
    system = dataclasses.replace(system, stages=system.stages | {"upsampler_0": stage})
    a, b = RNG.standard_normal((2, 6, 3, 3)), RNG.standard_normal((8, 2, 1, 1))
    file = read_adapter(write(tmp_path / "a.safetensors", {"conv_in.lora_A.weight": a, "conv_in.lora_B.weight": b}))
    with pytest.raises(UserError, match="fits upsampler_0.expert_0 or upsampler_0.expert_1; say which"):
        fit(file, system)
    (found,) = fit(file, system, "upsampler_0.expert_1")
    assert layers_of(found.params) == ["expert_1/conv_in"]
    with pytest.raises(UserError, match="has no upsampler_7"):
        fit(file, system, "upsampler_7")


def test_adapters_add_up_by_their_strengths(system):
    network, params = system.stages["prior"].network, system.params["prior"]
    first, second = (adapter(network, "prior") for _ in range(2))
    got = flatten(adapt(system, [(first, 0.5), (second, -2.0)]).params["prior"])
    for path, kernel in kernels_of(params).items():
        update = np.zeros(kernel.shape)
        for each, strength in ((first, 0.5), (second, -2.0)):
            flat = flatten(each.params)
            product = flat[f"{path}/lora_A/kernel"].astype(float) @ flat[f"{path}/lora_B/kernel"]
            update += strength * 1.5 * product
        np.testing.assert_allclose(got[f"{path}/kernel"], np.asarray(kernel) + update, rtol=1e-5, atol=1e-5)
    assert adapt(system, [(first, 0.5)]).params["decoder"] is system.params["decoder"]


def test_an_adapter_of_other_weights_is_refused(system):
    own = adapter(system.stages["prior"].network, "prior", base="ab" * 32)
    with pytest.raises(UserError, match="adapts a prior whose weights are abababababab, but those of bundle tiny are"):
        adapt(system, [(own, 1.0)])
