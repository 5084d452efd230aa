"""A system in Karlo's style with random weights, and the folders that it becomes; no torch anywhere."""

import dataclasses
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.bundle.helpers import weights
from tests.convert.tokenizer import CONTEXT, write_clip_tokenizer
from unclip_jax.convert import __main__ as convert
from unclip_jax.convert.export import export_karlo
from unclip_jax.convert.hf_clip import read_tokenizer
from unclip_jax.convert.karlo import PRESET
from unclip_jax.core.errors import run_cli
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.models.parameters import identity
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems import unclip
from unclip_jax.systems.system import System

WIDTH = 128  # two heads of 64, as the original checkpoints have them


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_clip_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def clip_spec(tokenizer_folder) -> CLIPSpec:
    """Both towers and a logit scale."""
    tokenizer = read_tokenizer(tokenizer_folder)
    return CLIPSpec(
        embed_dim=16,
        vision=VisionSpec(image_size=16, patch_size=4, width=64, num_layers=1, num_heads=1),
        text=TextSpec(
            vocab_size=tokenizer.vocab_size,
            context=CONTEXT,
            width=64,
            num_layers=2,
            num_heads=1,
            eos_id=tokenizer.eos_id,
        ),
        activation="quick_gelu",
        embedding="raw",
    )


@pytest.fixture(scope="session")
def karlo_system(clip_spec, tokenizer_folder) -> System:
    """Text tower, prior, decoder and one upsampler of two experts."""
    text_tower = dataclasses.replace(clip_spec, vision=None, contrastive=False, embed_dim=64)
    clip = Encoder(network=text_tower, params=weights(text_tower, 0))
    own = identity(clip.params)
    prior = PriorSpec(
        embed_dim=64, context=CONTEXT, text_width=64, width=WIDTH, num_layers=2, num_heads=2, null="empty_caption"
    )
    decoder = UNetSpec(
        image_size=16,
        channels=64,
        channel_mult=(1, 2),
        num_blocks=1,
        learned_sigma=True,
        attention_resolutions=(8,),
        embed_dim=64,
        context_width=48,
        text_width=64,
        null="empty_caption",
    )
    upsampler = UNetSpec(
        image_size=32,
        channels=64,
        channel_mult=(1, 2),
        num_blocks=1,
        learned_sigma=False,
        conditioning="additive",
        low_res=True,
    )
    experts = TimestepExperts(expert=upsampler, boundaries=(1.0,))
    stages = {
        "prior": unclip.prior_stage(prior, ProcessSpec(prediction="x0")),
        "decoder": unclip.decoder_stage(decoder, ProcessSpec(variance="learned_range")),
        "upsampler_0": unclip.upsampler_stage(experts, ProcessSpec(), LowRes(scale=2)),
    }
    rng = np.random.default_rng(9)
    return System(
        name="karlo",
        license="CreativeML OpenRAIL-M",
        description="imported from a UnCLIPPipeline",
        encoders={"clip": clip},
        stages=dict(stages),
        params={name: weights(stage.network, seed) for seed, (name, stage) in enumerate(stages.items(), 1)},
        streams=unclip.streams(list(stages)),
        sampling={
            name: dataclasses.replace(settings, limit=5.0 if name == "prior" else 1.0)
            for name, settings in PRESET.items()
        },
        identities=dict.fromkeys(("clip", "prior", "decoder"), own),
        tokenizer=read_tokenizer(tokenizer_folder),
        stats=EmbeddingStats(
            mean=jnp.asarray(rng.normal(size=64), jnp.float32),
            std=jnp.asarray(0.1 + rng.uniform(size=64), jnp.float32),
        ),
    )


@pytest.fixture(scope="session")
def karlo_folder(karlo_system, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "karlo"
    export_karlo(karlo_system, folder)
    return folder


@pytest.fixture
def copy(karlo_folder, tmp_path) -> Path:
    """A copy of the hub's folder to damage."""
    folder = tmp_path / "karlo"
    for path in karlo_folder.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(karlo_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command and gives its exit status, stdout and stderr."""

    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
        status = 0
        try:
            run_cli(convert.main)
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return run
