"""Karlo in the layout of the hub: a folder per component, as diffusers' `UnCLIPPipeline` and
`UnCLIPImageVariationPipeline` save it.

    text_encoder, tokenizer        CLIP's text tower            image_encoder, feature_extractor   its image tower
    prior, prior_scheduler         the prior                    (variations have the tower, and no prior)
    text_proj, decoder, ...        the decoder
    super_res_first, super_res_last, super_res_scheduler        one upsampler: the last network acts in the last step
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from unclip_jax.convert import diffusers_nets as nets
from unclip_jax.convert import hf_clip
from unclip_jax.convert.config_files import expect, field
from unclip_jax.convert.layouts import Entry, within
from unclip_jax.convert.mapping import Account, Imported, import_params, imported_system, wanted
from unclip_jax.convert.tensor_files import Tensors, find_weights, read_json
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems import unclip
from unclip_jax.systems.system import System

PIPELINES = ("UnCLIPPipeline", "UnCLIPImageVariationPipeline")
WEIGHTS = "diffusion_pytorch_model"
PRESET = {
    "prior": SamplingSettings(sampler="ddpm", steps=25, guidance_scale=4.0),
    "decoder": SamplingSettings(sampler="ddpm", steps=25, guidance_scale=8.0),
    "upsampler_0": SamplingSettings(sampler="ddpm", steps=7),
}
"""Karlo's own way of sampling ("fast"); its clip ranges are added from the schedulers' configs."""


def import_karlo(folder: Path, name: str, license: str = "") -> tuple[System, list[Account]]:
    """Import a system from the hub's folder; numbers are read when it is saved.

    Raises:
        UserError: the folder is of another model, or anything in it is missing, unexpected or misshapen.
    """
    index = read_json(folder / "model_index.json")
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise UserError(f"{folder / 'model_index.json'}: this is a {pipeline}; known are {' and '.join(PIPELINES)}")
    tokenizer = hf_clip.read_tokenizer(folder / "tokenizer")
    clip, accounts = import_towers(folder, tokenizer.eos_id)
    stages, stats = {}, None
    if pipeline == "UnCLIPPipeline":
        stages["prior"], stats, more = import_prior(folder / "prior", folder / "prior_scheduler")
        accounts += more
    stages["decoder"], more = import_decoder(folder, clip.clip.text_tower.width)
    accounts += more
    stages["upsampler_0"], more = import_upsampler(folder, stages["decoder"].stage.network.sample_shape[0])
    about = {"name": name, "license": license, "description": f"imported from a {pipeline}"}
    return imported_system(clip, stages, **about, tokenizer=tokenizer, stats=stats), accounts + more


def import_towers(folder: Path, eos_id: int, processor: str = "feature_extractor") -> tuple[Encoder, list[Account]]:
    """Import the text tower, and the image tower where there is one (the folder `processor` has its image statistics).

    Pipelines keep no logit scale.
    """
    where = str(folder / "text_encoder" / "config.json")
    config = read_json(Path(where))
    text = hf_clip.text_spec(config, where, eos_id)
    sources = [find_weights(folder / "text_encoder", "model")]
    vision, towers = None, [config]
    statistics = hf_clip.ImageStatistics()
    if (folder / "image_encoder").is_dir():
        vision_where = str(folder / "image_encoder" / "config.json")
        towers.append(read_json(Path(vision_where)))
        vision = hf_clip.vision_spec(towers[1], vision_where)
        preparation = folder / processor / "preprocessor_config.json"
        statistics = hf_clip.read_image_statistics(preparation, vision.image_size)
        sources.append(find_weights(folder / "image_encoder", "model"))
    spec = CLIPSpec(
        embed_dim=field(config, "projection_dim", int, where),
        text=text,
        vision=vision,
        contrastive=False,
        activation=hf_clip.activation(towers, where),
        embedding="raw",
        **statistics,
    )
    names = [hf_clip.text_names(spec)] + ([] if vision is None else [hf_clip.vision_names(spec)])
    return hf_clip.clip_encoder(spec, list(zip(sources, names, strict=True)))


def import_prior(folder: Path, scheduler: Path) -> tuple[Imported, EmbeddingStats, list[Account]]:
    """Import a `PriorTransformer` with the statistics of z_i that it whitens by."""
    spec = nets.prior_spec(read_json(folder / "config.json"), str(folder / "config.json"))
    process, settings = read_scheduler(scheduler, "sample", "small", PRESET["prior"])
    tensors = find_weights(folder, WEIGHTS)
    entries = [*nets.prior_names(spec), *within("stats/", "", nets.STATS)]
    shape = (spec.embed_dim,)
    params, accounts = import_params([(tensors, entries)], wanted(spec) | {"stats/mean": shape, "stats/std": shape})
    mean, std = (jnp.asarray(np.asarray(value, np.float32)) for value in params.pop("stats").values())
    if not bool((std > 0).all()):
        raise UserError(f"{tensors.path}: clip_std holds zeros, so the statistics of z_i were never set; use another")
    found = Imported(unclip.prior_stage(spec, process), params, settings)
    return found, EmbeddingStats(mean=mean, std=std), accounts


def import_decoder(folder: Path, text_width: int) -> tuple[Imported, list[Account]]:
    """Import the decoder and its text_proj."""
    where, projection = (folder / name / "config.json" for name in ("decoder", "text_proj"))
    spec = nets.decoder_spec(read_json(where), str(where), read_json(projection), str(projection), text_width)
    process, settings = read_scheduler(folder / "decoder_scheduler", "epsilon", "learned_range", PRESET["decoder"])
    sources = [
        (find_weights(folder / "decoder", WEIGHTS), nets.unet_names(spec)),
        (find_weights(folder / "text_proj", WEIGHTS), nets.text_proj_names(spec)),
    ]
    params, accounts = import_params(sources, wanted(spec))
    return Imported(unclip.decoder_stage(spec, process), params, settings), accounts


def import_upsampler(folder: Path, low_res_size: int) -> tuple[Imported, list[Account]]:
    """Import both super-resolution networks, as two experts of one upsampler: the first acts at t = 0 alone."""
    paths = [folder / "super_res_last", folder / "super_res_first"]
    specs = [nets.upsampler_spec(read_json(path / "config.json"), str(path / "config.json")) for path in paths]
    if specs[0] != specs[1]:
        raise UserError(f"{paths[0]} and {paths[1]} differ in more than weights; only equal networks are known")
    process, settings = read_scheduler(folder / "super_res_scheduler", "epsilon", "small", PRESET["upsampler_0"])
    network = TimestepExperts(expert=specs[0], boundaries=(1.0,))
    sources: list[tuple[Tensors, Sequence[Entry]]] = [
        (find_weights(path, WEIGHTS), within(f"expert_{i}/", "", nets.unet_names(specs[0])))
        for i, path in enumerate(paths)
    ]
    params, accounts = import_params(sources, wanted(network))
    low_res = LowRes(scale=specs[0].image_size // low_res_size)
    return Imported(unclip.upsampler_stage(network, process, low_res), params, settings), accounts


def read_scheduler(
    folder: Path,
    prediction: Literal["sample", "epsilon"],
    variance: Literal["small", "learned_range"],
    settings: SamplingSettings,
) -> tuple[ProcessSpec, SamplingSettings]:
    """Read an `UnCLIPScheduler`'s config as a process, and as `settings` that keep x_0 in its range."""
    path = folder / "scheduler_config.json"
    defaults = {
        "num_train_timesteps": 1000,
        "variance_type": "fixed_small_log",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "prediction_type": "epsilon",
        "beta_schedule": "squaredcos_cap_v2",
    }
    config = defaults | read_json(path)
    expect(
        config,
        str(path),
        _class_name="UnCLIPScheduler",
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        variance_type="fixed_small_log" if variance == "small" else variance,
    )
    process = ProcessSpec(
        schedule="cosine",
        num_steps=field(config, "num_train_timesteps", int, str(path)),
        prediction="x0" if prediction == "sample" else "eps",
        variance=variance,
    )
    if not field(config, "clip_sample", bool, str(path)):
        return process, dataclasses.replace(settings, threshold="none")
    return process, dataclasses.replace(settings, limit=field(config, "clip_sample_range", float, str(path)))
