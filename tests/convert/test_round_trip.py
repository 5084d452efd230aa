"""What is exported and imported again is the same bit for bit, whichever layout it went through."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.bundle.helpers import weights
from tests.convert.torch_save import torch_save
from tests.helpers import assert_trees_equal
from unclip_jax import bundle as bundles
from unclip_jax.bundle.parts import Bundle, Part, flatten
from unclip_jax.convert import karlo_original, open_clip
from unclip_jax.convert.export import export_clip, export_karlo
from unclip_jax.convert.hf_clip import import_clip, read_tokenizer
from unclip_jax.convert.kandinsky_prior import import_kandinsky_prior
from unclip_jax.convert.karlo import import_karlo
from unclip_jax.convert.mapping import export_tensors
from unclip_jax.core.errors import UserError


def loaded(bundle: Bundle, folder) -> Bundle:
    bundles.save(bundle, folder)
    return bundles.load(folder)


def assert_same(imported: Bundle, original: Bundle) -> None:
    assert set(imported.parts) == set(original.parts)
    for name, part in original.parts.items():
        theirs = imported.parts[name]
        assert dataclasses.replace(theirs, params={}) == dataclasses.replace(part, params={})
        assert_trees_equal(theirs.params, part.params)
    assert imported.tokenizer == original.tokenizer and imported.sampling == original.sampling
    if original.stats is not None:
        assert_trees_equal(imported.stats, original.stats)


def test_karlo(karlo_bundle, karlo_folder, tmp_path):
    imported, accounts = import_karlo(karlo_folder, "karlo", karlo_bundle.license)
    assert_same(loaded(imported, tmp_path / "out"), karlo_bundle)
    assert (imported.name, imported.license, imported.description) == (
        karlo_bundle.name,
        karlo_bundle.license,
        karlo_bundle.description,
    )
    files = sorted(karlo_folder.rglob("*.safetensors"))
    assert sorted(account.path for account in accounts) == [str(path) for path in files]
    for account in accounts:
        tensors = safetensors.numpy.load_file(account.path)
        assert account.used + len(account.ignored) == len(tensors) and not account.merged


def test_karlo_is_read_from_torch_files_and_shards_as_well(karlo_bundle, copy, tmp_path):
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
    imported, _ = import_karlo(copy, "karlo", karlo_bundle.license)
    assert_same(loaded(imported, tmp_path / "out"), karlo_bundle)


@pytest.mark.parametrize("name", ["prior", "decoder", "upsampler_0"])
def test_a_scheduler_that_does_not_clip(karlo_bundle, tmp_path, name):
    free = dataclasses.replace(karlo_bundle.sampling[name], threshold="none", limit=None)
    original = dataclasses.replace(karlo_bundle, sampling=karlo_bundle.sampling | {name: free})
    export_karlo(original, tmp_path / "hub")
    assert import_karlo(tmp_path / "hub", "karlo")[0].sampling == original.sampling
    dynamic = dataclasses.replace(free, threshold="dynamic")
    original = dataclasses.replace(karlo_bundle, sampling=karlo_bundle.sampling | {name: dynamic})
    with pytest.raises(UserError, match=f"{name}: UnCLIPScheduler has no words for dynamic thresholds"):
        export_karlo(original, tmp_path / "x")


def test_a_process_that_no_scheduler_of_theirs_has(karlo_bundle, tmp_path):
    prior = karlo_bundle.parts["prior"]
    process = dataclasses.replace(prior.process, zero_terminal_snr=True)
    parts = karlo_bundle.parts | {"prior": dataclasses.replace(prior, process=process)}
    with pytest.raises(UserError, match="prior: UnCLIPScheduler has no words for .*'zero_terminal_snr': True"):
        export_karlo(dataclasses.replace(karlo_bundle, parts=parts), tmp_path / "x")


@pytest.mark.parametrize("with_prior", [False, True])
def test_karlo_with_an_image_tower(karlo_bundle, clip_spec, tmp_path, with_prior):
    """Image variations have one and no prior; a bundle with both keeps both."""
    spec = dataclasses.replace(clip_spec, contrastive=False, embed_dim=64, image_mean=(0.4, 0.5, 0.6))
    clip = weights(Part(kind="clip", spec=spec), 5)
    name = bundles.identity(clip.params)
    names = ("prior", "decoder", "upsampler_0") if with_prior else ("decoder", "upsampler_0")
    parts = {"clip": clip} | {key: karlo_bundle.parts[key] for key in names}
    for key in set(parts) - {"upsampler_0"}:
        parts[key] = dataclasses.replace(parts[key], clip_identity=name)
    sampling = {key: karlo_bundle.sampling[key] for key in names}
    stats = karlo_bundle.stats if with_prior else None
    original = dataclasses.replace(karlo_bundle, parts=parts, sampling=sampling, stats=stats)
    export_karlo(original, tmp_path / "hub")
    index = json.loads((tmp_path / "hub" / "model_index.json").read_text())
    assert index["_class_name"] == ("UnCLIPPipeline" if with_prior else "UnCLIPImageVariationPipeline")
    assert ("prior" in index) == with_prior and ("image_encoder" in index) != with_prior
    imported, _ = import_karlo(tmp_path / "hub", "karlo")
    assert_same(loaded(imported, tmp_path / "out"), original)


def test_kandinsky_prior(karlo_bundle, copy, tmp_path):
    (copy / "prior_scheduler").rename(copy / "scheduler")
    (copy / "model_index.json").write_text('{"_class_name": "KandinskyV22PriorPipeline"}')
    imported, _ = import_kandinsky_prior(copy, "k22")
    parts = {name: karlo_bundle.parts[name] for name in ("clip", "prior")}
    original = dataclasses.replace(karlo_bundle, parts=parts, sampling={"prior": karlo_bundle.sampling["prior"]})
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
    part = weights(Part(kind="clip", spec=dataclasses.replace(clip_spec, **changes)), 1)
    part = dataclasses.replace(part, clip_identity=bundles.identity(part.params))
    tokenizer = None if part.spec.text is None else read_tokenizer(tokenizer_folder)
    original = Bundle(name="clip", parts={"clip": part}, tokenizer=tokenizer)
    export_clip(original, tmp_path / "hub")
    imported, accounts = import_clip(tmp_path / "hub", "clip", "MIT")
    assert_same(loaded(imported, tmp_path / "out"), original)
    assert len(accounts) == 1 and not accounts[0].ignored


def test_hf_clip_of_wide_towers_and_old_files(clip_spec, tokenizer_folder, tmp_path):
    vision = dataclasses.replace(clip_spec.vision, mlp_width=208)
    part = weights(Part(kind="clip", spec=dataclasses.replace(clip_spec, vision=vision)), 1)
    part = dataclasses.replace(part, clip_identity=bundles.identity(part.params))
    original = Bundle(name="clip", parts={"clip": part}, tokenizer=read_tokenizer(tokenizer_folder))
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
    part = weights(Part(kind="clip", spec=clip_spec), 3)
    original = Bundle(
        name="clip",
        parts={"clip": dataclasses.replace(part, clip_identity=bundles.identity(part.params))},
        tokenizer=read_tokenizer(tokenizer_folder),
    )
    theirs = fused(open_clip.names(clip_spec), part.params)
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
            "vision_cfg": {"image_size": 16, "patch_size": 4, "width": vision.width, "layers": vision.depth},
            "text_cfg": {
                "context_length": text.context,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.depth,
            },
        },
        "preprocess_cfg": {"mean": list(clip_spec.image_mean), "std": list(clip_spec.image_std)},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    imported, _ = open_clip.import_open_clip(folder, "clip", "")
    assert_same(loaded(imported, tmp_path / "out"), original)


def test_karlo_original(karlo_bundle, clip_spec, tokenizer_folder, tmp_path):
    clip = weights(Part(kind="clip", spec=dataclasses.replace(clip_spec, embed_dim=64)), 3)
    name = bundles.identity(clip.params)
    parts = {"clip": clip} | {key: karlo_bundle.parts[key] for key in ("prior", "decoder", "upsampler_0")}
    for key in ("clip", "prior", "decoder"):
        parts[key] = dataclasses.replace(parts[key], clip_identity=name)
    sampling = karlo_bundle.sampling | {
        "prior": dataclasses.replace(karlo_bundle.sampling["prior"], limit=10.0),
        "decoder": dataclasses.replace(karlo_bundle.sampling["decoder"], limit=None),
        "upsampler_0": dataclasses.replace(karlo_bundle.sampling["upsampler_0"], limit=None),
    }
    original = dataclasses.replace(karlo_bundle, parts=parts, sampling=sampling)

    def below(prefix, entries, params):
        return {f"{prefix}.{key}": value for key, value in fused(entries, params).items()}

    prior, decoder, upsampler = (parts[key] for key in ("prior", "decoder", "upsampler_0"))
    torch_save(tmp_path / "ViT-L-14.pt", fused(open_clip.names(clip.spec), clip.params))
    torch_save(
        tmp_path / karlo_original.PRIOR_FILE,
        {"state_dict": below("model", karlo_original.prior_names(prior.spec), prior.params)},
    )
    entries = karlo_original.unet_names(decoder.spec) + karlo_original.text_proj_names(decoder.spec)
    torch_save(tmp_path / karlo_original.DECODER_FILE, {"state_dict": below("model", entries, decoder.params)})
    entries = karlo_original.unet_names(upsampler.spec)
    networks = below("model_last_step", entries, upsampler.params["expert_0"])
    networks |= below("model_first_steps", entries, upsampler.params["expert_1"])
    torch_save(tmp_path / karlo_original.UPSAMPLER_FILE, {"state_dict": networks})
    stats = tuple(np.asarray(value) for value in (karlo_bundle.stats.mean, karlo_bundle.stats.std))
    torch_save(tmp_path / "ViT-L-14_stats.th", stats)
    sizes = karlo_original.Sizes(decoder_size=16, upsampler_size=32, channel_mult=(1, 2), depth=1, attention_at=(8,))
    imported, accounts = karlo_original.import_karlo_original(
        tmp_path, "karlo", tokenizer_folder=tokenizer_folder, sizes=sizes
    )
    assert_same(loaded(imported, tmp_path / "out"), original)
    names = {key.split(".")[1] for key in below("model", karlo_original.unet_names(decoder.spec), decoder.params)}
    assert names == {"time_embed", "input_blocks", "middle_block", "output_blocks", "out"}
    with pytest.raises(UserError, match="come without a tokenizer"):
        karlo_original.import_karlo_original(tmp_path, "karlo", sizes=sizes)


def test_exports_refuse_what_the_other_side_has_no_words_for(karlo_bundle, tiny_bundle, tmp_path):
    with pytest.raises(UserError, match="lacks the one upsampler of two experts"):
        export_karlo(tiny_bundle, tmp_path / "x")
    prior = karlo_bundle.parts["prior"]
    scaled = dataclasses.replace(prior, spec=dataclasses.replace(prior.spec, z_t_scale=2.0))
    changed = dataclasses.replace(karlo_bundle, parts=karlo_bundle.parts | {"prior": scaled})
    with pytest.raises(UserError, match="prior: z_t_scale is 2.0, for which diffusers has no words"):
        export_karlo(changed, tmp_path / "x")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="gives unit embeddings"):
        export_clip(tiny_bundle, tmp_path / "x")
    (tmp_path / "there").mkdir()
    for write in (export_karlo, export_clip):
        with pytest.raises(UserError, match="there already exists"):
            write(karlo_bundle, tmp_path / "there")


def test_weights_that_jax_holds_are_exported_too(karlo_bundle, tmp_path):
    decoder = karlo_bundle.parts["decoder"]
    import jax

    moved = dataclasses.replace(decoder, params=jax.tree.map(jnp.asarray, decoder.params))
    export_karlo(dataclasses.replace(karlo_bundle, parts=karlo_bundle.parts | {"decoder": moved}), tmp_path / "x")
    imported, _ = import_karlo(tmp_path / "x", "karlo")
    assert_same(loaded(imported, tmp_path / "out"), karlo_bundle)
