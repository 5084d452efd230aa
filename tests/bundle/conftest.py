"""One system with every kind of stage, saved once."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import pytest

from tests.bundle.helpers import weights
from unclip_jax import bundle as bundles
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems import unclip
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer

LEARNED = ProcessSpec(variance="learned_range")
CLIP_NAME = "c" * 64


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red circle above a blue square"] * 4, 270)


@pytest.fixture(scope="session")
def whole(tokenizer) -> System:
    """A system with every kind of stage, as small as they come."""
    clip = CLIPSpec(
        embed_dim=6,
        vision=VisionSpec(image_size=8, patch_size=4, width=8, num_layers=1, num_heads=1),
        text=TextSpec(
            vocab_size=tokenizer.vocab_size, context=5, width=8, num_layers=1, num_heads=1, eos_id=tokenizer.eos_id
        ),
    )
    prior = PriorSpec(embed_dim=6, context=5, text_width=8, width=8, num_layers=1, num_heads=1)
    unet = UNetSpec(image_size=8, channels=8, channel_mult=(1,), num_blocks=1, learned_sigma=False, groups=4)
    decoder = dataclasses.replace(unet, embed_dim=6, learned_sigma=True, context_width=8)
    upsamplers = [dataclasses.replace(unet, image_size=size, low_res=True) for size in (16, 32)]
    stages = {
        "prior": unclip.prior_stage(prior, ProcessSpec(prediction="x0")),
        "decoder": unclip.decoder_stage(decoder, LEARNED),
        "upsampler_0": unclip.upsampler_stage(upsamplers[0], ProcessSpec(), LowRes(scale=2)),
        "upsampler_1": unclip.upsampler_stage(upsamplers[1], ProcessSpec(), LowRes(scale=2)),
    }
    return System(
        name="tiny",
        license="Apache-2.0",
        description="a test",
        encoders={"clip": Encoder(network=clip, params=weights(clip, 0))},
        stages=dict(stages),
        params={name: weights(stage.network, seed) for seed, (name, stage) in enumerate(stages.items(), 1)},
        streams=unclip.streams(list(stages)),
        sampling={"prior": SamplingSettings(sampler="ddpm", steps=4)},
        identities=dict.fromkeys(("clip", "prior", "decoder"), CLIP_NAME),
        tokenizer=tokenizer,
        stats=EmbeddingStats(mean=jnp.arange(6.0) / 7, std=jnp.full(6, 1 / 17.2)),
    )


@pytest.fixture(scope="session")
def saved(whole, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    bundles.save(whole, folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A copy to damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in saved.rglob("*"):
        target = folder / path.relative_to(saved)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    return folder
