"""What weights do not say is asked for, and a config that asks for another function than ours is refused by field."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.bundle.helpers import weights
from tests.convert.test_commands import edit
from tests.convert.test_round_trip import clip_system, fused
from tests.convert.torch_save import torch_save
from unclip_jax import bundle as bundles
from unclip_jax.convert import open_clip
from unclip_jax.convert.export import export_clip
from unclip_jax.convert.hf_clip import read_tokenizer
from unclip_jax.convert.open_clip_models import MODELS, config_of_name
from unclip_jax.convert.tensor_files import find_weights, open_file
from unclip_jax.core.errors import UserError


def config_of(spec):
    vision, text = spec.vision, spec.text
    sizes = {"image_size": vision.image_size, "patch_size": vision.patch_size}
    return {
        "model_cfg": {
            "embed_dim": spec.embed_dim,
            "quick_gelu": True,
            "vision_cfg": sizes | {"width": vision.width, "layers": vision.num_layers},
            "text_cfg": {
                "context_length": text.context,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.num_heads,
                "layers": text.num_layers,
            },
        },
        "preprocess_cfg": {"size": 16, "mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"},
    }


@pytest.fixture(scope="module")
def theirs(clip_spec):
    return fused(open_clip.names(clip_spec), weights(clip_spec, 3))


@pytest.fixture
def alone(theirs, tmp_path):
    """Weights of OpenCLIP's and nothing else."""
    safetensors.numpy.save_file(theirs, tmp_path / "open_clip_model.safetensors")
    return tmp_path / "open_clip_model.safetensors"


def test_weights_alone_are_not_guessed(command, alone, clip_spec, tokenizer_folder, tmp_path):
    for source in (alone, alone.parent):
        words = ["open_clip", source, tmp_path / "out", "--tokenizer", tokenizer_folder]
        status, out, err = command(*words)
        assert (status, out) == (2, "") and err.count("\n") == 1
        assert err.startswith(f"error: {alone} does not say which activation and how many heads it is for; give")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_of(clip_spec)))
    assert command(*words, "--config", config)[0] == 0
    assert bundles.load(tmp_path / "out").encoder("clip").network == clip_spec
    status, _, err = command(*words, "--overwrite", "--config", "ViT-B-32")
    assert status == 2 and "reads captions at token 49407, but its tokenizer ends them with 554" in err
    status, _, err = command(*words, "--overwrite", "--config", "ViT-B32")
    assert status == 2 and "neither an open_clip_config.json nor a model known by name; did you mean 'ViT-B-32'?" in err


def test_a_file_of_openais_says_what_it_is(theirs, clip_spec, tokenizer_folder, tmp_path):
    torch_save(tmp_path / "plain.pt", theirs)
    with pytest.raises(UserError, match=r"plain.pt does not say which activation"):
        open_clip.import_open_clip(tmp_path / "plain.pt", "clip", "", tokenizer_folder)
    system, _ = open_clip.import_open_clip(tmp_path / "plain.pt", "clip", "", tokenizer_folder, "openai")
    assert system.encoder("clip").network == clip_spec


def test_models_by_name():
    spec = open_clip.spec_of_config(config_of_name("ViT-bigG-14"), "x", 49407)
    assert (spec.image_tower.num_heads, spec.image_tower.mlp_width, spec.activation) == (16, 8192, "gelu")
    spec = open_clip.spec_of_config(config_of_name("ViT-L-14-336-quickgelu"), "x", 49407)
    assert (spec.image_tower.image_size, spec.embed_dim, spec.activation) == (336, 768, "quick_gelu")
    assert (spec.text_tower.num_heads, spec.text_tower.width, spec.text_tower.num_layers) == (12, 768, 12)
    for name in MODELS:
        open_clip.spec_of_config(config_of_name(name), name, 49407)
    with pytest.raises(UserError, match="^ViT-L-14 was published with several means and deviations of images; give"):
        config_of_name("ViT-L-14")


CHANGES = [
    ("preprocess_cfg", "resize_mode", "squash", "resize_mode is 'squash'; only 'shortest' is known"),
    ("preprocess_cfg", "interpolation", "bilinear", "interpolation is 'bilinear'; only 'bicubic' is known"),
    ("preprocess_cfg", "size", 32, "size is 32, but the image tower sees 16 px"),
    ("preprocess_cfg", "mean", [0.5], "mean is \\[0.5\\]; it must hold three numbers"),
    ("vision_cfg", "act_kwargs", {"approximate": "tanh"}, "act_kwargs is .*; only None is known"),
    ("vision_cfg", "norm_kwargs", {"eps": 1e-6}, "norm_kwargs is .*; only None is known"),
    ("vision_cfg", "scaled_cosine_attn", True, "scaled_cosine_attn is True; only False is known"),
    ("vision_cfg", "pos_embed_type", "sin_cos_2d", "pos_embed_type is 'sin_cos_2d'; only 'learnable' is known"),
    ("vision_cfg", "timm_model_name", "x", "timm_model_name is 'x'; only None is known"),
    ("vision_cfg", "head_width", 63.5, "head_width is 63.5; expected a value of type int"),
    ("text_cfg", "hf_model_name", "x", "hf_model_name is 'x'; only None is known"),
    ("text_cfg", "what_comes_next", 1, "what_comes_next is 1, a field that is not known here, so it is not imported"),
    ("model_cfg", "custom_text", True, "custom_text is True; only False is known"),
]


@pytest.mark.parametrize(("part", "name", "value", "line"), CHANGES)
def test_a_config_that_means_another_function(clip_spec, part, name, value, line):
    config = config_of(clip_spec)
    holder = config if part in config else config["model_cfg"]
    holder[part] = holder[part] | {name: value}
    with pytest.raises(UserError, match=f"^x: {line}$"):
        open_clip.spec_of_config(config, "x", clip_spec.text.eos_id)


def test_a_text_towers_own_mlp_is_read(clip_spec):
    config = config_of(clip_spec)
    config["model_cfg"]["text_cfg"]["mlp_ratio"] = 2
    assert open_clip.spec_of_config(config, "x", clip_spec.text.eos_id).text_tower.mlp_width == 128


@pytest.fixture
def hub(clip_spec, tokenizer_folder, tmp_path):
    """A CLIP of Hugging Face's."""
    export_clip(clip_system(clip_spec, 1, read_tokenizer(tokenizer_folder)), tmp_path / "hub")
    return tmp_path / "hub"


PREPARED = [
    ({"resample": 2}, "resample is 2; only 3 is known"),
    ({"do_center_crop": False}, "do_center_crop is False; only True is known"),
    ({"rescale_factor": 1.0}, "rescale_factor is 1.0; only"),
    ({"size": {"height": 16, "width": 16}}, "size is {'height': 16, 'width': 16}; only 16 px"),
    ({"size": 20}, "size is 20; only 16 px, which the tower sees, are known"),
    ({"crop_size": {"height": 16, "width": 8}}, "crop_size is"),
    ({"crop_size": ...}, "crop_size is 224; only 16 px"),
]


@pytest.mark.parametrize(("changes", "line"), PREPARED)
def test_images_that_are_prepared_in_another_way(command, hub, tmp_path, changes, line):
    edit(hub / "preprocessor_config.json", **changes)
    status, out, err = command("hf_clip", hub, tmp_path / "out")
    assert (status, out) == (2, "") and err.startswith(f"error: {hub / 'preprocessor_config.json'}: {line}")


def test_how_images_are_prepared_has_to_be_said(command, hub, tmp_path):
    (hub / "preprocessor_config.json").unlink()
    status, _, err = command("hf_clip", hub, tmp_path / "out")
    assert status == 2 and "preprocessor_config.json is missing, which says how images are prepared; copy it" in err


def test_towers_of_two_activations(command, hub, tmp_path):
    config = json.loads((hub / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (hub / "config.json").write_text(json.dumps(config))
    status, _, err = command("hf_clip", hub, tmp_path / "out")
    assert status == 2 and "hidden_act is quick_gelu and gelu; towers are known with one activation only" in err


def test_karlos_towers_of_two_activations(command, karlo_system, clip_spec, copy, tmp_path):
    vision = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 256}
    (copy / "image_encoder").mkdir()
    config = vision | {"image_size": 16, "patch_size": 4, "hidden_act": "gelu"}
    (copy / "image_encoder" / "config.json").write_text(json.dumps(config))
    processor = {"size": 16, "crop_size": 16, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    (copy / "feature_extractor").mkdir(exist_ok=True)
    (copy / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(processor))
    safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, copy / "image_encoder" / "model.safetensors")
    status, _, err = command("karlo", copy, tmp_path / "out")
    assert status == 2 and "hidden_act is quick_gelu and gelu" in err


def shards(folder, placed):
    """An index and its two files."""
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for name, content in zip(names, ({"a": np.ones(2, np.float32)}, {"b": np.zeros(3, np.float32)}), strict=True):
        safetensors.numpy.save_file(content, folder / name)
    index = {"weight_map": {tensor: names[place] for tensor, place in placed.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_hold_what_their_index_names(tmp_path):
    shards(tmp_path, {"a": 0, "b": 1})
    assert find_weights(tmp_path, "model").shapes == {"a": (2,), "b": (3,)}
    extra = {"a": np.ones(2, np.float32), "c": np.ones(1, np.float32)}
    safetensors.numpy.save_file(extra, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"00001-of-00002.safetensors: tensor c is not in model.safetensors.index.json"):
        find_weights(tmp_path, "model")


def test_what_wrappers_put_before_names_is_taken_off(tmp_path):
    value = np.arange(3, dtype=np.float32)
    torch_save(tmp_path / "x.pt", {"module._orig_mod.a.weight": value, "module._orig_mod.b": value})
    found = open_file(tmp_path / "x.pt")
    assert set(found.shapes) == {"a.weight", "b"}
    np.testing.assert_array_equal(found.read("a.weight"), value)
    # A module of that name is no wrapper.
    torch_save(tmp_path / "y.pt", {"module.a": value, "b": value})
    assert set(open_file(tmp_path / "y.pt").shapes) == {"module.a", "b"}


@pytest.mark.parametrize(
    "name", ["model.fp16.safetensors", "model.bf16.safetensors", "pytorch_model.fp16.bin", "model.safetensors"]
)
def test_half_precision_alone_is_taken(tmp_path, name):
    save = torch_save if name.endswith(".bin") else (lambda path, content: safetensors.numpy.save_file(content, path))
    save(tmp_path / name, {"a": np.zeros(2, np.float16)})
    assert find_weights(tmp_path, "model").path == tmp_path / name


def test_which_half_precision_is_not_guessed(tmp_path):
    for name in ("model.fp16.safetensors", "model.bf16.safetensors"):
        safetensors.numpy.save_file({"a": np.zeros(2, np.float16)}, tmp_path / name)
    with pytest.raises(UserError, match="holds weights as fp16 and as bf16; leave one of them there"):
        find_weights(tmp_path, "model")
    (tmp_path / "other").mkdir()
    safetensors.numpy.save_file({"a": np.zeros(2, np.float16)}, tmp_path / "other" / "model.non_ema.safetensors")
    with pytest.raises(UserError, match=r"called model.safetensors or pytorch_model.bin, only model.non_ema.safetenso"):
        find_weights(tmp_path / "other", "model")


@pytest.mark.parametrize("name", ["karlo", "karlo_original", "kandinsky_prior", "hf_clip", "to_karlo", "to_hf_clip"])
def test_a_file_where_a_folder_is_meant(command, alone, tmp_path, name):
    status, out, err = command(name, alone, tmp_path / "out")
    assert (status, out) == (2, "") and err.startswith(f"error: {alone} is a file") and err.count("\n") == 1


def test_a_file_where_the_folder_of_a_tokenizer_is_meant(command, alone, tmp_path):
    words = ["open_clip", alone, tmp_path / "out", "--config", "openai", "--tokenizer", alone]
    assert f"{alone} is not a folder; give the folder that the tokenizer's files are in" in command(*words)[2]
