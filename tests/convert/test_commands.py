"""The command: what it prints, and one line for everything that can be wrong with somebody's files."""

import json

import numpy as np
import pytest
import safetensors.numpy

from unclip_jax import bundle as bundles
from unclip_jax.convert.config_files import stated_license


def edit(path, **changes) -> None:
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def edit_tensors(path, change) -> None:
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


@pytest.mark.slow
def test_import_and_export(command, karlo_system, karlo_folder, tmp_path):
    status, out, err = command("karlo", karlo_folder, tmp_path / "bundle", "--dtype", "bfloat16", "--name", "k")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert (
        len(lines) == 8
        and lines[-2] == "licence not stated; --license states one"
        and lines[-1].startswith(f"wrote {tmp_path / 'bundle'} (clip, prior, decoder, upsampler_0)")
    )
    prior = len(safetensors.numpy.load_file(karlo_folder / "prior" / "diffusion_pytorch_model.safetensors"))
    assert f"{karlo_folder / 'prior' / 'diffusion_pytorch_model.safetensors'}: {prior} tensors, {prior} used" in out
    system = bundles.load(tmp_path / "bundle")
    assert system.name == "k" and system.license == ""
    kernel = np.asarray(system.params["prior"]["out"]["kernel"])
    original = np.asarray(karlo_system.params["prior"]["out"]["kernel"])
    assert 0 < np.abs(kernel - original).max() < 0.01 * np.abs(original).max()
    # What went through bfloat16 once comes back from an export as it is.
    assert command("to_karlo", tmp_path / "bundle", tmp_path / "hub")[0] == 0
    assert command("karlo", tmp_path / "hub", tmp_path / "again")[0] == 0
    again = np.asarray(bundles.load(tmp_path / "again").params["prior"]["out"]["kernel"])
    assert (again == kernel).all()
    assert command("karlo", karlo_folder, tmp_path / "bundle")[0] == 2
    assert command("karlo", karlo_folder, tmp_path / "bundle", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ("---\ntags:\n- x\nlicense: creativeml-openrail-m\n---\n# Karlo\n", "creativeml-openrail-m"),
        ("---\nlicense: 'mit' # ours\n---\n", "mit"),
        ("---\ntags: x\n---\nlicense: mit\n", ""),
        ("license: mit\n", ""),
        ("---\nlicense:\n- mit\n---\n", ""),
        (None, ""),
    ],
)
def test_a_licence_is_what_the_model_states(tmp_path, text, license):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert stated_license(tmp_path) == license


DECODER = "decoder/diffusion_pytorch_model.safetensors"


def truncate(folder):
    path = folder / DECODER
    path.write_bytes(path.read_bytes()[:-100])


def other_model(folder):
    edit(folder / "model_index.json", _class_name="StableDiffusionPipeline")


def no_shard(folder):
    path = folder / DECODER
    path.with_name(f"{path.name}.index.json").write_text('{"weight_map": {"conv_in.weight": "a.safetensors"}}')
    path.unlink()


def shard_elsewhere(folder):
    path = folder / DECODER
    path.with_name(f"{path.name}.index.json").write_text('{"weight_map": {"conv_in.weight": "../a.safetensors"}}')
    path.unlink()


def tensor_missing(folder):
    edit_tensors(folder / DECODER, lambda tensors: tensors.pop("conv_in.bias"))


def tensor_unexpected(folder):
    edit_tensors(folder / DECODER, lambda tensors: tensors.update(lora_up=np.zeros(2, np.float32)))


def tensor_misshapen(folder):
    edit_tensors(folder / DECODER, lambda tensors: tensors.update({"conv_in.bias": np.zeros(7, np.float32)}))


def not_finite(folder):
    edit_tensors(folder / DECODER, lambda tensors: tensors["conv_in.bias"].fill(np.nan))


def stats_never_set(folder):
    path = folder / "prior" / "diffusion_pytorch_model.safetensors"
    edit_tensors(path, lambda tensors: tensors["clip_std"].fill(0))


def config_of_another_width(folder):
    edit(folder / "prior" / "config.json", num_layers=3)


def config_is_cut(folder):
    path = folder / "prior" / "config.json"
    path.write_text(path.read_text()[:-20])


def unknown_block(folder):
    edit(folder / "decoder" / "config.json", down_block_types=["CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"])


def unknown_norm(folder):
    edit(folder / "decoder" / "config.json", norm_eps=1e-6)


def other_projection(folder):
    edit(folder / "text_proj" / "config.json", cross_attention_dim=7)


def no_field(folder):
    edit(folder / "prior" / "config.json", num_layers=...)


def other_scheduler(folder):
    edit(folder / "prior_scheduler" / "scheduler_config.json", prediction_type="epsilon")


def no_weights(folder):
    (folder / DECODER).unlink()


def no_tokenizer(folder):
    for name in ("tokenizer.json", "vocab.json"):
        (folder / "tokenizer" / name).unlink()


def no_index(folder):
    (folder / "model_index.json").unlink()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (truncate, "{folder}/decoder/diffusion_pytorch_model.safetensors is damaged"),
        (other_model, "{folder}/model_index.json: this is a StableDiffusionPipeline; known are UnCLIPPipeline"),
        (no_shard, "{folder}/decoder/a.safetensors is missing"),
        (shard_elsewhere, "{folder}/decoder/diffusion_pytorch_model.safetensors.index.json names a file outside"),
        (tensor_missing, "{folder}/decoder/diffusion_pytorch_model.safetensors: tensor conv_in.bias is missing"),
        (tensor_unexpected, "{folder}/decoder/diffusion_pytorch_model.safetensors: tensor lora_up is unexpected"),
        (tensor_misshapen, "{folder}/decoder/diffusion_pytorch_model.safetensors: tensor conv_in.bias has shape [7]"),
        (not_finite, "decoder: tensor conv_in/bias is not finite"),
        (stats_never_set, "{folder}/prior/diffusion_pytorch_model.safetensors: clip_std holds zeros"),
        (config_of_another_width, "{folder}/prior/diffusion_pytorch_model.safetensors: tensor transformer_blocks.2."),
        (config_is_cut, "{folder}/prior/config.json is not readable JSON"),
        (unknown_block, "{folder}/decoder/config.json: there is a CrossAttnDownBlock2D; known are"),
        (unknown_norm, "{folder}/decoder/config.json: norm_eps is 1e-06; only 1e-05 is known"),
        (other_projection, "{folder}/text_proj/config.json: cross_attention_dim is 7; only 48 is known"),
        (no_field, "{folder}/prior/config.json: num_layers is None; expected a value of type int"),
        (other_scheduler, "{folder}/prior_scheduler/scheduler_config.json: prediction_type is 'epsilon'"),
        (no_weights, "{folder}/decoder holds no weights"),
        (no_tokenizer, "{folder}/tokenizer holds no tokenizer"),
        (no_index, "{folder}/model_index.json is missing"),
    ],
)  # fmt: skip
def test_bad_files_get_one_line_and_leave_nothing(command, copy, tmp_path, damage, line):
    damage(copy)
    status, out, err = command("karlo", copy, tmp_path / "out")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {line.format(folder=copy)}") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["karlo"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["karlo", "nowhere", "OUT"], "nowhere does not exist"),
        (["hf_clip", ".", "OUT"], "config.json is missing"),
        (["karlo", "."], "Folder of the bundle to make"),
        (["open_clip", "pyproject.toml", "OUT"], "pyproject.toml has no tokenizer; give the folder of one"),
        (["to_karlo", "demo", "OUT"], "bundle demo lacks the one upsampler of two experts"),
        (["to_hf_clip", "demo", "OUT"], "bundle demo: its CLIP gives unit embeddings"),
        (["to_karlo", "demoo", "OUT"], "no bundle demoo"),
    ],
)
def test_mistakes_in_the_command_line(command, tmp_path, words, line):
    status, out, err = command(*(tmp_path / "out" if word == "OUT" else word for word in words))
    assert (status, out) == (2, "") and line in err and err.count("\n") == 1
