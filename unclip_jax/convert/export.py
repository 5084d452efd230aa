"""Bundles as folders that diffusers and transformers load: the imports of `karlo` and `hf_clip` in reverse.

A config is written from each spec and read back by the importer; whatever does not come back as it was is something
that the other side has no words for, and is refused by name. Weights are laid out by the importers' own name maps.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unclip_jax.bundle.safetensors_file import Stored, write_safetensors
from unclip_jax.bundle.store import check_place
from unclip_jax.convert import diffusers_nets as nets
from unclip_jax.convert import hf_clip
from unclip_jax.convert.karlo import WEIGHTS
from unclip_jax.convert.layouts import Entry, within
from unclip_jax.convert.mapping import export_tensors
from unclip_jax.core.config import to_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write
from unclip_jax.core.typing import HasShape, JsonDict
from unclip_jax.diffusion import ProcessSpec
from unclip_jax.models.base import Network
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.models.parameters import flatten
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer

DIFFUSERS, TRANSFORMERS = "diffusers", "transformers"
# How a network is computed is no property of its weights.
RUNNING = {"dtype": "float32", "remat": False, "attention": "xla"}


def export_karlo(system: System, folder: Path) -> None:
    """Write what `UnCLIPPipeline` loads, or `UnCLIPImageVariationPipeline` where the bundle has no prior.

    Raises:
        UserError: the bundle is not such a pipeline, or holds what it cannot express; no folder is left then.
    """
    check_place(folder)
    varies = "prior" not in system.stages
    clip, decoder = system.encoder("clip"), _unet(system.stage("decoder").network, "decoder")
    upsampler, params = _upsampler(system), system.params
    if clip.clip.embedding != "raw" or not clip.clip.projection:
        raise UserError(f"bundle {system.name}: its CLIP does not give raw, projected embeddings as Karlo's does")
    if system.tokenizer is None:
        raise UserError(f"bundle {system.name} has no tokenizer; Karlo cannot do without")
    with atomic_write(folder) as draft:
        draft.mkdir()
        index: JsonDict = {"_class_name": "UnCLIPPipeline", "_diffusers_version": "0.37.1"}
        write_tokenizer(system.tokenizer, draft / "tokenizer", clip.clip.text_tower.context)
        index["tokenizer"] = [TRANSFORMERS, "CLIPTokenizer"]
        write_tower(clip.clip, flatten(clip.params), "text", system.tokenizer, draft / "text_encoder")
        index["text_encoder"] = [TRANSFORMERS, "CLIPTextModelWithProjection"]
        if varies or clip.clip.vision is not None:
            # With a prior the pipeline has no place for it and leaves the folder alone; `convert karlo` reads it again.
            write_tower(clip.clip, flatten(clip.params), "vision", system.tokenizer, draft / "image_encoder")
            write_processor(clip.clip, draft / "feature_extractor")
        if varies:
            index["_class_name"] = "UnCLIPImageVariationPipeline"
            index["image_encoder"] = [TRANSFORMERS, "CLIPVisionModelWithProjection"]
            index["feature_extractor"] = [TRANSFORMERS, "CLIPImageProcessor"]
        else:
            prior, stats = system.stage("prior").network, system.stats
            assert stats is not None  # a bundle with a prior has them
            if not isinstance(prior, PriorSpec):
                raise UserError(f"prior is a {prior.TAG[1]}, for which diffusers has no words; it is not exported")
            config = prior_config(prior)
            _check("prior", prior, nets.prior_spec(config, "prior"))
            weights = flatten(params["prior"]) | {"stats/mean": stats.mean, "stats/std": stats.std}
            entries = [*nets.prior_names(prior), *within("stats/", "", nets.STATS)]
            _write(draft / "prior", config, entries, weights, WEIGHTS)
            index["prior"] = [DIFFUSERS, "PriorTransformer"]
            _write_scheduler(system, "prior", draft / "prior_scheduler", index)
        config, projection = decoder_configs(decoder)
        back = nets.decoder_spec(config, "decoder", projection, "text_proj", clip.clip.text_tower.width)
        _check("decoder", decoder, back)
        _write(draft / "decoder", config, nets.unet_names(decoder), flatten(params["decoder"]), WEIGHTS)
        index["decoder"] = [DIFFUSERS, "UNet2DConditionModel"]
        _write(draft / "text_proj", projection, nets.text_proj_names(decoder), flatten(params["decoder"]), WEIGHTS)
        index["text_proj"] = ["unclip", "UnCLIPTextProjModel"]
        _write_scheduler(system, "decoder", draft / "decoder_scheduler", index)
        config = upsampler_config(upsampler)
        _check("upsampler_0", upsampler, nets.upsampler_spec(config, "upsampler_0"))
        for i, name in enumerate(("super_res_last", "super_res_first")):
            weights = flatten(params["upsampler_0"][f"expert_{i}"])
            _write(draft / name, config, nets.unet_names(upsampler), weights, WEIGHTS)
            index[name] = [DIFFUSERS, "UNet2DModel"]
        _write_scheduler(system, "upsampler_0", draft / "super_res_scheduler", index)
        _write_json(draft / "model_index.json", index)


def _upsampler(system: System) -> UNetSpec:
    """Return the spec of the two experts of Karlo's one upsampler."""
    stages = [stage for stage in system.stages if stage not in ("prior", "decoder")]
    network = system.stages[stages[0]].network if stages == ["upsampler_0"] else None
    if not isinstance(network, TimestepExperts) or network.boundaries != (1.0,):
        raise UserError(f"bundle {system.name} lacks the one upsampler of two experts, one for t = 0, that Karlo has")
    return _unet(network.expert, "upsampler_0")


def _unet(network: Network, name: str) -> UNetSpec:
    if not isinstance(network, UNetSpec):
        raise UserError(f"{name} is a {network.TAG[1]}, for which diffusers has no words; it is not exported")
    return network


def export_clip(system: System, folder: Path) -> None:
    """Write what `CLIPModel`, or one of its towers, loads."""
    check_place(folder)
    encoder, tokenizer = system.encoder("clip"), system.tokenizer
    spec, weights = encoder.clip, flatten(encoder.params)
    if spec.embedding != "raw":
        raise UserError(f"bundle {system.name}: its CLIP gives unit embeddings, Hugging Face's gives raw ones")
    with atomic_write(folder) as draft:
        draft.mkdir()
        if tokenizer is not None:
            write_tokenizer(tokenizer, draft, spec.text_tower.context)
        if spec.vision is not None:
            write_processor(spec, draft)
        if not spec.contrastive:
            if spec.vision is not None and spec.text is not None:
                raise UserError(f"bundle {system.name} has two towers without a logit scale; CLIPModel needs one")
            write_tower(spec, weights, "text" if spec.text is not None else "vision", tokenizer, draft)
            return
        config = {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": spec.embed_dim,
            "text_config": tower_config(spec, "text", tokenizer),
            "vision_config": tower_config(spec, "vision", tokenizer),
        }
        _write(draft, config, hf_clip.names(spec), weights, "model")


def tower_config(spec: CLIPSpec, which: str, tokenizer: Tokenizer | None) -> JsonDict:
    """Return the config of one tower."""
    tower = spec.text_tower if which == "text" else spec.image_tower
    config: JsonDict = {
        "model_type": f"clip_{which}_model",
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width or 4 * tower.width,
        "num_hidden_layers": tower.num_layers,
        "num_attention_heads": tower.num_heads,
        "hidden_act": spec.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": spec.embed_dim,
    }
    if which == "vision":
        return config | {
            "image_size": spec.image_tower.image_size,
            "patch_size": spec.image_tower.patch_size,
            "num_channels": 3,
        }
    text = spec.text_tower
    config |= {"vocab_size": text.vocab_size, "max_position_embeddings": text.context, "eos_token_id": text.eos_id}
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    return config


def write_tower(
    spec: CLIPSpec, weights: Mapping[str, HasShape], which: str, tokenizer: Tokenizer | None, folder: Path
) -> None:
    """Write one tower as a model of its own."""
    kind = "Text" if which == "text" else "Vision"
    suffix = "WithProjection" if spec.projection else ""
    config = {"architectures": [f"CLIP{kind}Model{suffix}"], **tower_config(spec, which, tokenizer)}
    names = hf_clip.text_names(spec) if which == "text" else hf_clip.vision_names(spec)
    _write(folder, config, names, weights, "model")


def write_processor(spec: CLIPSpec, folder: Path) -> None:
    """Write the preparation of images for `CLIPImageProcessor`."""
    size = spec.image_tower.image_size
    folder.mkdir(exist_ok=True)
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.image_mean),
        "image_std": list(spec.image_std),
    }
    _write_json(folder / "preprocessor_config.json", config)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write a tokenizer in both of Hugging Face's formats: tokenizer.json, and vocab.json with merges.txt."""
    model = json.loads(tokenizer.definition)["model"]
    if model.get("type") != "BPE":
        raise UserError("the tokenizer is no byte-pair encoding; CLIPTokenizer is one")
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder)
    _write_json(folder / "vocab.json", model["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config |= {"tokenizer_class": "CLIPTokenizer", "model_max_length": context, "unk_token": tokenizer.eos_token}
    _write_json(folder / "tokenizer_config.json", config)


def prior_config(spec: PriorSpec) -> JsonDict:
    """Return the config of a `PriorTransformer`."""
    return {
        "_class_name": "PriorTransformer",
        "num_attention_heads": spec.num_heads,
        "attention_head_dim": spec.width // spec.num_heads,
        "num_layers": spec.num_layers,
        "embedding_dim": spec.embed_dim,
        "num_embeddings": spec.context,
        "additional_embeddings": 4,
        "dropout": 0.0,
    }


def decoder_configs(spec: UNetSpec) -> tuple[JsonDict, JsonDict]:
    """Return the configs of a decoder's `UNet2DConditionModel` and of its `UnCLIPTextProjModel`."""
    attends = [spec.attends(level) for level in range(len(spec.channel_mult))]
    config = _unet_config(spec) | {
        "_class_name": "UNet2DConditionModel",
        "in_channels": 3,
        "out_channels": 6,
        "down_block_types": [nets.ATTENDING_DOWN if attend else nets.PLAIN_DOWN for attend in attends],
        "mid_block_type": nets.ATTENDING_MIDDLE,
        "up_block_types": [nets.ATTENDING_UP if attend else nets.PLAIN_UP for attend in reversed(attends)],
        "cross_attention_dim": spec.context_width,
        "attention_head_dim": spec.head_channels,
        "resnet_time_scale_shift": "scale_shift",
        "class_embed_type": "identity",
    }
    projection = {
        "_class_name": "UnCLIPTextProjModel",
        "clip_embeddings_dim": spec.embed_dim,
        "clip_extra_context_tokens": spec.num_image_tokens,
        "cross_attention_dim": spec.context_width,
        "time_embed_dim": 4 * spec.channels,
    }
    return config, projection


def upsampler_config(spec: UNetSpec) -> JsonDict:
    """Return the config of a super-resolution `UNet2DModel`."""
    levels = len(spec.channel_mult)
    return _unet_config(spec) | {
        "_class_name": "UNet2DModel",
        "in_channels": 6,
        "out_channels": 3,
        "down_block_types": [nets.PLAIN_DOWN] * levels,
        "up_block_types": [nets.PLAIN_UP] * levels,
        "add_attention": False,
        "resnet_time_scale_shift": "default",
    }


def _unet_config(spec: UNetSpec) -> JsonDict:
    return {
        "sample_size": spec.image_size,
        "block_out_channels": [spec.channels * multiplier for multiplier in spec.channel_mult],
        "layers_per_block": spec.num_blocks,
        "norm_num_groups": spec.groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def _write_scheduler(system: System, name: str, folder: Path, index: JsonDict) -> None:
    process = system.stage(name).process
    predictions = {"eps": "epsilon", "x0": "sample"}
    variances = {"small": "fixed_small_log", "learned_range": "learned_range"}
    if (
        not isinstance(process, ProcessSpec)
        or process.schedule != "cosine"
        or process.zero_terminal_snr
        or process.prediction not in predictions
        or process.variance not in variances
    ):
        raise UserError(f"{name}: UnCLIPScheduler has no words for {to_json(process)}; it is not exported")
    settings = system.sampling.get(name, SamplingSettings())
    if settings.threshold == "dynamic":
        raise UserError(f"{name}: UnCLIPScheduler has no words for dynamic thresholds; it is not exported")
    # Where no limit is given, images are kept in [-1, 1] and embeddings are not kept at all.
    limit = None if settings.threshold == "none" else settings.limit or (None if name == "prior" else 1.0)
    config = {
        "_class_name": "UnCLIPScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "num_train_timesteps": process.num_steps,
        "prediction_type": predictions[process.prediction],
        "variance_type": variances[process.variance],
        "clip_sample": limit is not None,
        "clip_sample_range": limit or 1.0,
    }
    folder.mkdir()
    _write_json(folder / "scheduler_config.json", config)
    index[folder.name] = [DIFFUSERS, "UnCLIPScheduler"]


def _check(name: str, spec: Network, back: Network) -> None:
    """Refuse a spec that does not survive being written as their config and read again."""
    mine, theirs = (to_json(dataclasses.replace(each, **RUNNING)) for each in (spec, back))
    for field, value in mine.items():
        if value != theirs[field]:
            raise UserError(f"{name}: {field} is {value!r}, for which diffusers has no words; it is not exported")


def _write(
    folder: Path, config: Mapping[str, object], entries: Sequence[Entry], weights: Mapping[str, HasShape], stem: str
) -> None:
    folder.mkdir(exist_ok=True)
    _write_json(folder / "config.json", config)
    tensors = export_tensors(entries, weights)
    stored = {name: Stored(np.dtype(np.float32), value, f"{folder.name}: {name}") for name, value in tensors.items()}
    write_safetensors(folder / f"{stem}.safetensors", stored, "pt")


def _write_json(path: Path, data: Mapping[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
