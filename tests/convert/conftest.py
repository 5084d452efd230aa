"""A bundle in Karlo's style with random weights, and the folders that it becomes; no torch anywhere."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.bundle.helpers import weights
from tests.convert.tokenizer import CONTEXT, write_clip_tokenizer
from unclip_jax.bundle import Bundle, Part, identity
from unclip_jax.convert.export import export_karlo
from unclip_jax.convert.hf_clip import read_tokenizer
from unclip_jax.convert.karlo import PRESET
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.models.prior import EmbeddingStats, PriorSpec
from unclip_jax.models.unet import UNetSpec

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
        vision=VisionSpec(image_size=16, patch_size=4, width=64, depth=1, heads=1),
        text=TextSpec(
            vocab_size=tokenizer.vocab_size, context=CONTEXT, width=64, depth=2, heads=1, eos_id=tokenizer.eos_id
        ),
        activation="quick_gelu",
        embedding="raw",
    )


@pytest.fixture(scope="session")
def karlo_bundle(clip_spec, tokenizer_folder) -> Bundle:
    """Text tower, prior, decoder and one upsampler of two experts."""
    clip = weights(
        Part(kind="clip", spec=dataclasses.replace(clip_spec, vision=None, contrastive=False, embed_dim=64)), 0
    )
    name = identity(clip.params)
    prior = PriorSpec(embed_dim=64, context=CONTEXT, text_width=64, width=WIDTH, depth=2, heads=2, null="empty_caption")
    decoder = UNetSpec(
        image_size=16,
        channels=64,
        channel_mult=(1, 2),
        depth=1,
        learned_sigma=True,
        attention_at=(8,),
        embed_dim=64,
        context_width=48,
        text_width=64,
        null="empty_caption",
    )
    upsampler = UNetSpec(
        image_size=32,
        channels=64,
        channel_mult=(1, 2),
        depth=1,
        learned_sigma=False,
        conditioning="additive",
        low_res=True,
    )
    parts = {
        "prior": Part(kind="prior", spec=prior, process=ProcessSpec(prediction="x0"), clip_identity=name),
        "decoder": Part(
            kind="decoder", spec=decoder, process=ProcessSpec(variance="learned_range"), clip_identity=name
        ),
        "upsampler_0": Part(kind="upsampler", spec=upsampler, process=ProcessSpec(), low_res_size=16, experts=(1,)),
    }
    rng = np.random.default_rng(9)
    return Bundle(
        name="karlo",
        license="CreativeML OpenRAIL-M",
        description="imported from a UnCLIPPipeline",
        parts={"clip": dataclasses.replace(clip, clip_identity=name)}
        | {key: weights(part, seed) for seed, (key, part) in enumerate(parts.items(), 1)},
        sampling={key: dataclasses.replace(how, limit=5.0 if key == "prior" else 1.0) for key, how in PRESET.items()},
        tokenizer=read_tokenizer(tokenizer_folder),
        stats=EmbeddingStats(
            mean=jnp.asarray(rng.normal(size=64), jnp.float32),
            std=jnp.asarray(0.1 + rng.uniform(size=64), jnp.float32),
        ),
    )


@pytest.fixture(scope="session")
def karlo_folder(karlo_bundle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "karlo"
    export_karlo(karlo_bundle, folder)
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
