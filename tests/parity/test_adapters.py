"""Adapters in both directions: what we write, diffusers and PEFT load; what they write loads here; same forwards."""

import copy
import json

import jax
import jax.numpy as jnp
import pytest
import torch

pytest.importorskip("peft")

from diffusers import PriorTransformer, UNet2DConditionModel
from diffusers.models.attention_processor import LoRAAttnAddedKVProcessor, LoRAAttnProcessor
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tests.parity.compare import relative_error, to_ours, to_torch
from tests.parity.test_networks import captions  # noqa: F401  # a fixture
from tests.parity.weights import draw, weight
from unclip_jax.adapters.lora import LoRAConfig, layers_of, new_adapter
from unclip_jax.convert.adapter_files import METADATA, WEIGHTS, read_adapter
from unclip_jax.convert.adapters import fit, save_adapter
from unclip_jax.models.cond import UNetCond
from unclip_jax.models.parameters import flatten, unflatten
from unclip_jax.systems.adapting import Adapter, adapt

TOLERANCE = 1e-5
T = torch.tensor([5, 700])
TIME = jnp.asarray([5.0, 700.0])
TARGETS = {
    "prior": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in"],
    "decoder": ["to_q", "to_out.0", "add_k_proj", "add_v_proj", "conv1", "conv2", "conv_shortcut", "time_emb_proj"],
    "super_res_first": ["conv_in", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "linear_1"],
}
PARTS = {"prior": "prior", "decoder": "decoder", "super_res_first": "upsampler_0.expert_1"}


def forwards(name, pipeline, system, captions):  # noqa: F811
    """(theirs of a module, ours of a system) on the same inputs."""
    rows, encoded, mask = captions
    if name == "super_res_first":
        x_t, low_res = (to_torch(draw(each, (2, 32, 32, 3))) for each in ("x_t", "low_res"))
        network = system.stages["upsampler_0"].network.expert
        cond = UNetCond(low_res=to_ours(low_res))
        return (
            lambda module: module(torch.cat([x_t, low_res], dim=1), T).sample,
            lambda system: network.apply(system.params["upsampler_0"]["expert_1"], to_ours(x_t), TIME, cond),
        )
    stage, arrays = system.stage(name), dict(rows)
    if name == "prior":
        x_t = torch.from_numpy(draw("x_t", (2, *stage.network.sample_shape)))

        def theirs(module):
            return module(x_t, T, encoded.text_embeds, encoded.last_hidden_state, mask).predicted_image_embedding

    else:
        x_t, z_i = to_torch(draw("pixels", (2, 16, 16, 3))), torch.from_numpy(draw("z_i", (2, stage.network.embed_dim)))
        arrays["z_i"] = to_ours(z_i)
        with torch.no_grad():
            context, added = pipeline.text_proj(
                image_embeddings=z_i,
                prompt_embeds=encoded.text_embeds,
                text_encoder_hidden_states=encoded.last_hidden_state,
                do_classifier_free_guidance=False,
            )
        whole = torch.nn.functional.pad(mask, (4, 0), value=True)

        def theirs(module):
            return module(x_t, T, encoder_hidden_states=context, class_labels=added, attention_mask=whole).sample

    def ours(system):
        cond = stage.condition(system.weights(name), arrays, 2)
        return stage.network.apply(system.params[name], to_ours(x_t), TIME, cond)

    return theirs, ours


def compare(name, module, pipeline, system, adapted, captions):  # noqa: F811
    """The same forward with the adapter, and another one without."""
    theirs, ours = forwards(name, pipeline, system, captions)
    with torch.no_grad():
        expected, plain = theirs(module), theirs(getattr(pipeline, name))
    assert relative_error(ours(adapted), expected) < TOLERANCE
    assert relative_error(to_ours(plain), expected) > 1e-2


def randomised(module):
    """PEFT begins with B at zero."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "lora_" in name:
                value.copy_(torch.from_numpy(weight(f"theirs.{name}", tuple(value.shape))))
    return module.eval()


def own_adapter(network, part, rslora=False):
    """An adapter of every layer but what diffusers has in another network, with no zero in it."""
    inside = "expert_1/.*" if part == "upsampler_0" else "^"
    targets = (rf"{inside}(transformer|z_i_in|out|conv|time|conditioner/time|down|middle|up)",)
    # The update is about as large as the kernels: larger than training makes it, not so large that it drowns them.
    lora = LoRAConfig(rank=3, alpha=1.5, rslora=rslora, targets=targets)
    shapes = jax.eval_shape(lambda key: new_adapter(network.abstract_params(), lora, key), jax.random.key(0))
    params = unflatten({name: weight(f"{part}.{name}", leaf.shape) for name, leaf in flatten(shapes).items()})
    return Adapter(name="ours", part=part, params=params, scales=dict.fromkeys(layers_of(params), lora.scale))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_diffusers_loads_ours(name, rslora, pipeline, system, captions, tmp_path):  # noqa: F811
    own = own_adapter(system.stage(name).network, name, rslora)
    save_adapter(tmp_path / WEIGHTS, own, system.stage(name).network)
    module = copy.deepcopy(getattr(pipeline, name))
    module.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    compare(name, module.eval(), pipeline, system, adapt(system, [(own, 1.0)]), captions)


@pytest.mark.parametrize("strength", [0.5, -1.0])
def test_strengths_are_those_of_peft(strength, pipeline, system, captions, tmp_path):  # noqa: F811
    own = own_adapter(system.stage("prior").network, "prior")
    save_adapter(tmp_path / WEIGHTS, own, system.stage("prior").network)
    module = copy.deepcopy(pipeline.prior)
    module.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True, adapter_name="a")
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_scale("a", strength)
    compare("prior", module.eval(), pipeline, system, adapt(system, [(own, strength)]), captions)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_ours_loads_diffusers(name, rslora, pipeline, system, captions, tmp_path):  # noqa: F811
    module = copy.deepcopy(getattr(pipeline, name))
    pattern = {"r": 4, "lora_alpha": 6, "rank_pattern": {"to_out.0": 2}, "alpha_pattern": {"to_out.0": 1}}
    module.add_adapter(LoraConfig(**pattern, target_modules=TARGETS[name], use_rslora=rslora))
    randomised(module).save_lora_adapter(tmp_path)
    adapted = adapt(system, [(each, 1.0) for each in fit(read_adapter(tmp_path), system)])
    compare(name, module, pipeline, system, adapted, captions)


def test_super_resolution_by_peft(pipeline, system, captions, tmp_path):  # noqa: F811
    """diffusers has no loader for a `UNet2DModel`; PEFT itself has."""
    network = system.stages["upsampler_0"].network
    own = own_adapter(network, "upsampler_0")
    save_adapter(tmp_path / WEIGHTS, own, network)
    tensors = load_file(tmp_path / WEIGHTS)
    names = sorted({key.rpartition(".lora_")[0] for key in tensors})
    module = copy.deepcopy(pipeline.super_res_first)
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=1.5, target_modules=names), module)
    found = set_peft_model_state_dict(module, tensors)
    assert not found.unexpected_keys
    compare("super_res_first", module.eval(), pipeline, system, adapt(system, [(own, 1.0)]), captions)

    theirs = copy.deepcopy(pipeline.super_res_first)
    inject_adapter_in_model(config := LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS["super_res_first"]), theirs)
    about = {METADATA: json.dumps({"r": config.r, "lora_alpha": config.lora_alpha})}
    save_file(get_peft_model_state_dict(randomised(theirs)), tmp_path / "theirs.safetensors", about)
    found = fit(read_adapter(tmp_path / "theirs.safetensors"), system, PARTS["super_res_first"])
    compare("super_res_first", theirs, pipeline, system, adapt(system, [(each, 1.0) for each in found]), captions)


def test_text_encoder(pipeline, system, captions, tmp_path):  # noqa: F811
    """CLIP's text tower, as transformers has it."""
    rows, _, _ = captions
    module = copy.deepcopy(pipeline.text_encoder)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "out_proj", "fc1", "fc2"])
    inject_adapter_in_model(config, module)
    tensors = {f"text_encoder.{name}": value for name, value in get_peft_model_state_dict(randomised(module)).items()}
    about = {METADATA: json.dumps({"text_encoder.lora_alpha": 8, "text_encoder.r": 4})}
    save_file(tensors, tmp_path / "a.safetensors", about)
    adapted = adapt(system, [(each, 1.0) for each in fit(read_adapter(tmp_path / "a.safetensors"), system)])
    tokens = torch.tensor(rows["tokens"].tolist())
    with torch.no_grad():
        expected, plain = module(tokens), pipeline.text_encoder(tokens)
    ours = adapted.encoder("clip").encode_text(rows["tokens"])
    assert relative_error(ours.z_t, expected.text_embeds) < TOLERANCE
    assert relative_error(ours.hidden, expected.last_hidden_state) < TOLERANCE
    assert relative_error(to_ours(plain.text_embeds), expected.text_embeds) > 1e-2


def test_what_the_documents_say_of_others_training():
    """docs/adapters.md: diffusers' scripts for Kandinsky 2.2 give these classes arguments that they do not take."""
    for processor in (LoRAAttnProcessor, LoRAAttnAddedKVProcessor):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            processor(hidden_size=32, cross_attention_dim=32, rank=4)
    assert all(hasattr(each, "load_lora_adapter") for each in (PriorTransformer, UNet2DConditionModel))
