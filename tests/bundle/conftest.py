"""One bundle with every kind of part, saved once."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import pytest

from tests.bundle.helpers import weights
from unclip_jax import bundle as bundles
from unclip_jax.bundle import Bundle, Part
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.models.prior import EmbeddingStats, PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text.tokenizer import Tokenizer

LEARNED = ProcessSpec(variance="learned_range")
CLIP_NAME = "c" * 64


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red circle above a blue square"] * 4, 270)


@pytest.fixture(scope="session")
def whole(tokenizer) -> Bundle:
    """A bundle with every kind of part, as small as they come."""
    clip = CLIPSpec(
        embed_dim=6,
        vision=VisionSpec(image_size=8, patch_size=4, width=8, depth=1, heads=1),
        text=TextSpec(vocab_size=tokenizer.vocab_size, context=5, width=8, depth=1, heads=1, eos_id=tokenizer.eos_id),
    )
    prior = PriorSpec(embed_dim=6, context=5, text_width=8, width=8, depth=1, heads=1)
    unet = UNetSpec(image_size=8, channels=8, channel_mult=(1,), depth=1, learned_sigma=False, groups=4)
    decoder = dataclasses.replace(unet, embed_dim=6, learned_sigma=True, context_width=8)
    upsamplers = [dataclasses.replace(unet, image_size=size, low_res=True) for size in (16, 32)]
    parts = {
        "clip": Part(kind="clip", spec=clip, clip_identity=CLIP_NAME),
        "prior": Part(kind="prior", spec=prior, process=ProcessSpec(prediction="x0"), clip_identity=CLIP_NAME),
        "decoder": Part(kind="decoder", spec=decoder, process=LEARNED, clip_identity=CLIP_NAME),
        "upsampler_0": Part(kind="upsampler", spec=upsamplers[0], process=ProcessSpec(), low_res_size=8),
        "upsampler_1": Part(kind="upsampler", spec=upsamplers[1], process=ProcessSpec(), low_res_size=16),
    }
    return Bundle(
        name="tiny",
        license="Apache-2.0",
        description="a test",
        parts={name: weights(part, seed) for seed, (name, part) in enumerate(parts.items())},
        sampling={"prior": StageSettings(sampler="ddpm", steps=4)},
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
