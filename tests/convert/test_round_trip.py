"""What is exported and imported again is the same bit for bit, whichever layout it went through."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.bundle.helpers import weights
from tests.convert.torch_save import torch_save
from tests.helpers import assert_trees_equal
from unclip_jax import bundle as bundles
from unclip_jax.convert import karlo_original, open_clip
from unclip_jax.convert.export import export_clip, export_karlo
from unclip_jax.convert.hf_clip import import_clip, read_tokenizer
from unclip_jax.convert.kandinsky_prior import import_kandinsky_prior
from unclip_jax.convert.karlo import import_karlo
from unclip_jax.convert.mapping import export_tensors
from unclip_jax.core.errors import UserError
from unclip_jax.models.base import Network
from unclip_jax.models.parameters import flatten, identity
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.stage import Stage
from unclip_jax.systems.system import System


def loaded(system: System, folder) -> System:
    bundles.save(system, folder)
    return bundles.load(folder)


def assert_same(imported: System, original: System) -> None:
    assert list(imported.networks) == list(original.networks) and imported.networks == original.networks
    assert imported.stages == original.stages and imported.streams == original.streams
    assert imported.identities == original.identities
    for name, encoder in original.encoders.items():
        assert_trees_equal(imported.encoders[name].params, encoder.params)
    assert_trees_equal(imported.params, original.params)
    assert imported.tokenizer == original.tokenizer and imported.sampling == original.sampling
    assert (imported.stats is None) == (original.stats is None)
    if original.stats is not None:
        assert_trees_equal(imported.stats, original.stats)


def clip_system(network: Network, seed: int, tokenizer) -> System:
    """A system of a CLIP alone."""
    params = weights(network, seed)
    return System(
        name="clip",
        encoders={"clip": Encoder(network=network, params=params)},
        stages={},
        identities={"clip": identity(params)},
        tokenizer=tokenizer,
    )


def with_stage(system: System, name: str, stage: Stage) -> System:
    return dataclasses.replace(system, stages=system.stages | {name: stage})


def with_clip(system: System, network: Network, seed: int, names: tuple[str, ...]) -> System:
    """The stages `names` of a system, with another CLIP."""
    params = weights(network, seed)
    conditioned = [name for name in names if system.stages[name].encoders]
    kept = {
        field: {name: getattr(system, field)[name] for name in names}
        for field in ("stages", "params", "streams", "sampling")
    }
    return dataclasses.replace(
        system,
        encoders={"clip": Encoder(network=network, params=params)},
        identities=dict.fromkeys(["clip", *conditioned], identity(params)),
        stats=system.stats if "prior" in names else None,
        **kept,
    )


@pytest.mark.slow
def test_karlo(karlo_system, karlo_folder, tmp_path):
    imported, accounts = import_karlo(karlo_folder, "karlo", karlo_system.license)
    assert_same(loaded(imported, tmp_path / "out"), karlo_system)
    assert (imported.name, imported.license, imported.description) == (
        karlo_system.name,
        karlo_system.license,
        karlo_system.description,
    )
    files = sorted(karlo_folder.rglob("*.safetensors"))
    assert sorted(account.path for account in accounts) == [str(path) for path in files]
    for account in accounts:
        tensors = safetensors.numpy.load_file(account.path)
        assert account.used + len(account.ignored) == len(tensors) and not account.merged


@pytest.mark.slow
def test_karlo_is_read_from_torch_files_and_shards_as_well(karlo_system, copy, tmp_path):
    for i, path in enumerate(sorted(copy.rglob("*.safetensors"))):
        tensors = safetensors.numpy.load_file(path)
        path.unlink()
        if i % 2:
            stem = "pytorch_model" if path.stem == "model" else path.stem
            torch_save(path.with_name(f"{stem}.bin"), tensors)
            continue
        names = sorted(tensors)
        halves = {f"{path.stem}-{k}.safetensors": names[k::2] for k in (0, 1)}
        for shard, members in halves.items():
            safetensors.numpy.save_file({name: tensors[name] for name in members}, path.with_name(shard))
        placed = {name: shard for shard, members in halves.items() for name in members}
        path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": placed}))
    imported, _ = import_karlo(copy, "karlo", karlo_system.license)
    assert_same(loaded(imported, tmp_path / "out"), karlo_system)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prior", "decoder", "upsampler_0"])
def test_a_scheduler_that_does_not_clip(karlo_system, tmp_path, name):
    free = dataclasses.replace(karlo_system.sampling[name], threshold="none", limit=None)
    original = dataclasses.replace(karlo_system, sampling=karlo_system.sampling | {name: free})
    export_karlo(original, tmp_path / "hub")
    assert import_karlo(tmp_path / "hub", "karlo")[0].sampling == original.sampling
    dynamic = dataclasses.replace(free, threshold="dynamic")
    original = dataclasses.replace(karlo_system, sampling=karlo_system.sampling | {name: dynamic})
    with pytest.raises(UserError, match=f"{name}: UnCLIPScheduler has no words for dynamic thresholds"):
        export_karlo(original, tmp_path / "x")


def test_a_process_that_no_scheduler_of_theirs_has(karlo_system, tmp_path):
    prior = karlo_system.stage("prior")
    changed = dataclasses.replace(prior, process=dataclasses.replace(prior.process, zero_terminal_snr=True))
    with pytest.raises(UserError, match="prior: UnCLIPScheduler has no words for .*'zero_terminal_snr': True"):
        export_karlo(with_stage(karlo_system, "prior", changed), tmp_path / "x")


@pytest.mark.slow
@pytest.mark.parametrize("with_prior", [False, True])
def test_karlo_with_an_image_tower(karlo_system, clip_spec, tmp_path, with_prior):
    """Image variations have one and no prior; a system with both keeps both."""
    network = dataclasses.replace(clip_spec, contrastive=False, embed_dim=64, image_mean=(0.4, 0.5, 0.6))
    names = ("prior", "decoder", "upsampler_0") if with_prior else ("decoder", "upsampler_0")
    original = with_clip(karlo_system, network, 5, names)
    export_karlo(original, tmp_path / "hub")
    index = json.loads((tmp_path / "hub" / "model_index.json").read_text())
    assert index["_class_name"] == ("UnCLIPPipeline" if with_prior else "UnCLIPImageVariationPipeline")
    assert ("prior" in index) == with_prior and ("image_encoder" in index) != with_prior
    imported, _ = import_karlo(tmp_path / "hub", "karlo")
    assert_same(loaded(imported, tmp_path / "out"), original)


def test_kandinsky_prior(karlo_system, copy, tmp_path):
    (copy / "prior_scheduler").rename(copy / "scheduler")
    (copy / "model_index.json").write_text('{"_class_name": "KandinskyV22PriorPipeline"}')
    imported, _ = import_kandinsky_prior(copy, "k22")
    original = dataclasses.replace(
        karlo_system,
        stages={"prior": karlo_system.stages["prior"]},
        params={"prior": karlo_system.params["prior"]},
        streams={"prior": 0},
        sampling={"prior": karlo_system.sampling["prior"]},
        identities={name: karlo_system.identities[name] for name in ("clip", "prior")},
    )
    assert_same(loaded(imported, tmp_path / "out"), original)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "gelu"},
        {"vision": None, "contrastive": False},
        {"text": None, "contrastive": False},
        {"vision": None, "contrastive": False, "projection": False, "embed_dim": 64},
        {"text": None, "contrastive": False, "projection": False, "embed_dim": 64},
    ],
    ids=["both", "gelu", "text", "vision", "text without projection", "vision without projection"],
)
def test_hf_clip(clip_spec, tokenizer_folder, tmp_path, changes):
    network = dataclasses.replace(clip_spec, **changes)
    original = clip_system(network, 1, None if network.text is None else read_tokenizer(tokenizer_folder))
    export_clip(original, tmp_path / "hub")
    imported, accounts = import_clip(tmp_path / "hub", "clip", "MIT")
    assert_same(loaded(imported, tmp_path / "out"), original)
    assert len(accounts) == 1 and not accounts[0].ignored


def test_hf_clip_of_wide_towers_and_old_files(clip_spec, tokenizer_folder, tmp_path):
    vision = dataclasses.replace(clip_spec.vision, mlp_width=208)
    network = dataclasses.replace(clip_spec, vision=vision)
    original = clip_system(network, 1, read_tokenizer(tokenizer_folder))
    export_clip(original, tmp_path / "hub")
    weights_file = tmp_path / "hub" / "model.safetensors"
    # Files of before 2023 hold a buffer, and the end-of-text id of a config of theirs is 2 whatever the vocabulary.
    tensors = safetensors.numpy.load_file(weights_file)
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    safetensors.numpy.save_file(tensors, weights_file)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    imported, accounts = import_clip(tmp_path / "hub", "clip", "")
    assert_same(loaded(imported, tmp_path / "out"), original)
    assert accounts[0].ignored == ("text_model.embeddings.position_ids",)
    assert "ignored text_model.embeddings.position_ids" in str(accounts[0])


def fused(entries, params) -> dict[str, np.ndarray]:
    """Their tensors from parameters of ours; those that hold several of ours are found by asking the layouts."""
    flat = {name: np.asarray(value) for name, value in flatten(params).items()}
    alone = [entry for entry in entries if entry.layout.to_theirs is not None]
    made = {name: np.asarray(value) for name, value in export_tensors(alone, flat).items()}
    for theirs in dict.fromkeys(entry.theirs for entry in entries if entry.layout.to_theirs is None):
        members = [entry for entry in entries if entry.theirs == theirs]
        total = sum(flat[entry.ours].size for entry in members)
        rows = sum(flat[entry.ours].shape[-1] for entry in members)
        rest = () if rows == total else (total // rows,)
        if theirs.endswith(("qkv.weight", "encoder_kv.weight")) and "c_qkv" not in theirs:
            rest = (*rest, 1)
        # Send each position's number through the layouts to learn where it goes, and then send the values back.
        where = np.arange(total).reshape(rows, *rest)
        values = np.empty(total, np.float32)
        for entry in members:
            values[entry.layout.to_ours(where)] = flat[entry.ours]
        made[theirs] = values.reshape(where.shape)
    return made


def test_open_clip_and_openai(clip_spec, tokenizer_folder, tmp_path):
    original = clip_system(clip_spec, 3, read_tokenizer(tokenizer_folder))
    theirs = fused(open_clip.names(clip_spec), original.encoder("clip").params)
    assert theirs["transformer.resblocks.0.attn.in_proj_weight"].shape == (192, 64)
    torch_save(tmp_path / "ViT.pt", theirs | {"input_resolution": np.array(16), "context_length": np.array(77)})
    imported, accounts = open_clip.import_open_clip(tmp_path / "ViT.pt", "clip", "", tokenizer_folder)
    assert_same(loaded(imported, tmp_path / "openai"), original)
    assert accounts[0].ignored == ("context_length", "input_resolution") and accounts[0].merged == 6
    folder = tmp_path / "open_clip"
    folder.mkdir()
    for path in tokenizer_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    safetensors.numpy.save_file(theirs, folder / "open_clip_model.safetensors")
    vision, text = clip_spec.vision, clip_spec.text
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 16, "patch_size": 4, "width": vision.width, "layers": vision.num_layers},
            "text_cfg": {
                "context_length": text.context,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.num_heads,
                "layers": text.num_layers,
            },
        },
        "preprocess_cfg": {"mean": list(clip_spec.image_mean), "std": list(clip_spec.image_std)},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    imported, _ = open_clip.import_open_clip(folder, "clip", "")
    assert_same(loaded(imported, tmp_path / "out"), original)


@pytest.mark.slow
def test_karlo_original(karlo_system, clip_spec, tokenizer_folder, tmp_path):
    names = ("prior", "decoder", "upsampler_0")
    original = with_clip(karlo_system, dataclasses.replace(clip_spec, embed_dim=64), 3, names)
    sampling = {"prior": {"limit": 10.0}, "decoder": {"limit": None}, "upsampler_0": {"limit": None}}
    sampling = {name: dataclasses.replace(original.sampling[name], **changes) for name, changes in sampling.items()}
    original = dataclasses.replace(original, sampling=sampling)

    def below(prefix, entries, params):
        return {f"{prefix}.{key}": value for key, value in fused(entries, params).items()}

    clip, params = original.encoder("clip"), original.params
    prior, decoder, upsampler = (original.stage(name).network for name in names)
    torch_save(tmp_path / "ViT-L-14.pt", fused(open_clip.names(clip.clip), clip.params))
    torch_save(
        tmp_path / karlo_original.PRIOR_FILE,
        {"state_dict": below("model", karlo_original.prior_names(prior), params["prior"])},
    )
    entries = karlo_original.unet_names(decoder) + karlo_original.text_proj_names(decoder)
    torch_save(tmp_path / karlo_original.DECODER_FILE, {"state_dict": below("model", entries, params["decoder"])})
    entries = karlo_original.unet_names(upsampler.expert)
    networks = below("model_last_step", entries, params["upsampler_0"]["expert_0"])
    networks |= below("model_first_steps", entries, params["upsampler_0"]["expert_1"])
    torch_save(tmp_path / karlo_original.UPSAMPLER_FILE, {"state_dict": networks})
    stats = tuple(np.asarray(value) for value in (karlo_system.stats.mean, karlo_system.stats.std))
    torch_save(tmp_path / "ViT-L-14_stats.th", stats)
    sizes = karlo_original.Sizes(
        decoder_size=16, upsampler_size=32, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(8,)
    )
    imported, _accounts = karlo_original.import_karlo_original(
        tmp_path, "karlo", tokenizer_folder=tokenizer_folder, sizes=sizes
    )
    assert_same(loaded(imported, tmp_path / "out"), original)
    unet = below("model", karlo_original.unet_names(decoder), params["decoder"])
    assert {key.split(".")[1] for key in unet} == {"time_embed", "input_blocks", "middle_block", "output_blocks", "out"}
    with pytest.raises(UserError, match="come without a tokenizer"):
        karlo_original.import_karlo_original(tmp_path, "karlo", sizes=sizes)


def test_exports_refuse_what_the_other_side_has_no_words_for(karlo_system, tiny_bundle, tmp_path):
    with pytest.raises(UserError, match="lacks the one upsampler of two experts"):
        export_karlo(tiny_bundle, tmp_path / "x")
    prior = karlo_system.stage("prior")
    scaled = dataclasses.replace(prior, network=dataclasses.replace(prior.network, z_t_scale=2.0))
    changed = with_stage(karlo_system, "prior", scaled)
    with pytest.raises(UserError, match="prior: z_t_scale is 2.0, for which diffusers has no words"):
        export_karlo(changed, tmp_path / "x")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="gives unit embeddings"):
        export_clip(tiny_bundle, tmp_path / "x")
    (tmp_path / "there").mkdir()
    for write in (export_karlo, export_clip):
        with pytest.raises(UserError, match="there already exists"):
            write(karlo_system, tmp_path / "there")


@pytest.mark.slow
def test_weights_that_jax_holds_are_exported_too(karlo_system, tmp_path):
    moved = jax.tree.map(jnp.asarray, karlo_system.params["decoder"])
    held = dataclasses.replace(karlo_system, params=karlo_system.params | {"decoder": moved})
    export_karlo(held, tmp_path / "x")
    imported, _ = import_karlo(tmp_path / "x", "karlo")
    assert_same(loaded(imported, tmp_path / "out"), karlo_system)
