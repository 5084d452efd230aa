"""Captioned pictures of your own, from the CLIP to 256 px, in three sizes.

COMMAND   python -m train.clip photos --name birds --data.source BIRDS        then prior, decoder and upsampler alike
DATA      BIRDS as in docs/data.md: a folder, tar files, parquet, ...; 1 of 20 pictures is held out and never trained on
"""

import dataclasses
from typing import Any

from unclip_jax.data.config import DataConfig
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.parallel.mesh import MeshSpec
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.training.config import OptimConfig, RunConfig, ValidationConfig
from unclip_jax.training.stage_configs import CLIPConfig, DecoderConfig, PriorConfig, UpsamplerConfig

DATA = "photos"
DEEP = {"dtype": "bfloat16", "remat": True, "scan": True}
HELD_OUT = ValidationConfig(share=0.05)
ADAMW = OptimConfig(beta2=0.98, weight_decay=0.1, schedule="cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Size:
    """What the stages of one size share, and how long each is trained on how many examples at a time."""

    name: str
    embed_dim: int
    vision: VisionSpec
    text: TextSpec
    batches: tuple[int, int, int, int]
    """Of CLIP, prior, decoder and upsampler."""
    steps: tuple[int, int, int, int]
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What a network of many layers saves memory and compile time by."""
    mesh: MeshSpec = MeshSpec()

    def run(self, stage: int, name: str) -> RunConfig:
        steps = self.steps[stage]
        every = max(steps // 10, 1)
        return RunConfig(
            workdir=f"runs/{self.name}/{name}",
            steps=steps,
            save_every=every,
            sample_every=every,
            log_every=max(every // 10, 1),
            mesh=self.mesh,
        )

    def data(self, stage: int) -> DataConfig:
        return DataConfig(source=DATA, batch_size=self.batches[stage])


SMALL = _Size(
    name="photos",
    embed_dim=128,
    vision=VisionSpec(image_size=64, patch_size=8, width=128, num_layers=4, num_heads=4),
    text=TextSpec(vocab_size=2048, context=32, width=128, num_layers=3, num_heads=4, eos_id=1),
    batches=(128, 128, 16, 8),
    steps=(1000, 2000, 4000, 2000),
)
MEDIUM = _Size(
    name="photos-medium",
    embed_dim=512,
    vision=VisionSpec(image_size=128, patch_size=16, width=512, num_layers=8, num_heads=8),
    text=TextSpec(vocab_size=16384, context=64, width=512, num_layers=8, num_heads=8, eos_id=1),
    batches=(1024, 1024, 256, 64),
    steps=(50_000, 100_000, 200_000, 100_000),
    network=DEEP,
)
LARGE = _Size(
    name="photos-large",
    embed_dim=768,
    vision=VisionSpec(image_size=224, patch_size=14, width=1024, num_layers=24, num_heads=16),
    text=TextSpec(vocab_size=49_152, context=77, width=768, num_layers=12, num_heads=12, eos_id=1),
    batches=(16_384, 4096, 1024, 512),
    steps=(100_000, 200_000, 400_000, 200_000),
    network=DEEP,
    mesh=MeshSpec(data=-1, fsdp=8),
)


def _clip(size: _Size) -> CLIPConfig:
    return CLIPConfig(
        model=CLIPSpec(embed_dim=size.embed_dim, vision=size.vision, text=size.text, **size.network),
        data=size.data(0),
        optim=dataclasses.replace(ADAMW, learning_rate=5e-4, warmup_steps=size.steps[0] // 20),
        run=size.run(0, "clip"),
        validation=HELD_OUT,
    )


def _prior(size: _Size, width: int, num_layers: int) -> PriorConfig:
    return PriorConfig(
        model=PriorSpec(
            embed_dim=size.embed_dim,
            context=size.text.context,
            text_width=size.text.width,
            width=width,
            num_layers=num_layers,
            num_heads=width // 64,
            z_t_scale=size.embed_dim**0.5,
            **size.network,
        ),
        process=ProcessSpec(schedule="cosine", prediction="x0", variance="small"),
        data=size.data(1),
        clip=f"runs/{size.name}/clip",
        optim=dataclasses.replace(ADAMW, learning_rate=3e-4, warmup_steps=size.steps[1] // 20),
        run=size.run(1, "prior"),
        validation=HELD_OUT,
        sampling=SamplingSettings(steps=25, guidance_scale=2.0, num_candidates=2),
    )


def _decoder(size: _Size, model: UNetSpec) -> DecoderConfig:
    return DecoderConfig(
        model=model,
        process=ProcessSpec(schedule="cosine", prediction="v", variance="learned_range"),
        data=size.data(2),
        clip=f"runs/{size.name}/clip",
        optim=OptimConfig(learning_rate=5e-4, warmup_steps=size.steps[2] // 20, ema_decay=0.998),
        run=size.run(2, "decoder"),
        validation=HELD_OUT,
        sampling=SamplingSettings(steps=32, guidance_scale=2.0),
    )


def _upsampler(size: _Size, model: UNetSpec) -> UpsamplerConfig:
    return UpsamplerConfig(
        model=model,
        process=ProcessSpec(schedule="cosine", prediction="v", variance="small"),
        low_res=LowRes(scale=4, degradation="blur"),
        data=dataclasses.replace(size.data(3), flip=True),
        optim=OptimConfig(learning_rate=5e-4, warmup_steps=100, ema_decay=0.998),
        run=size.run(3, "upsampler"),
        validation=HELD_OUT,
        sampling=SamplingSettings(steps=27),
    )


def _unet(size: _Size, channels: int, num_blocks: int, text_layers: int, patch: int = 1) -> UNetSpec:
    """The decoder's network at 64 px."""
    return UNetSpec(
        image_size=64,
        patch=patch,
        channels=channels,
        channel_mult=(1, 2, 3) if patch > 1 else (1, 2, 3, 4),
        num_blocks=num_blocks,
        learned_sigma=True,
        attention_resolutions=(16, 8) if patch > 1 else (32, 16, 8),
        head_channels=32 if patch > 1 else 64,
        embed_dim=size.embed_dim,
        z_i_scale=size.embed_dim**0.5,
        context_width=size.text.width,
        text=dataclasses.replace(size.text, num_layers=text_layers),
        **size.network,
    )


def _unet_256(size: _Size, channels: int, num_blocks: int) -> UNetSpec:
    """The upsampler's network, from 64 to 256 px; it works at 128 px, its pixels folded 2 x 2 into channels."""
    return UNetSpec(
        image_size=256,
        patch=2,
        channels=channels,
        channel_mult=(1, 2, 3),
        num_blocks=num_blocks,
        learned_sigma=False,
        groups=16,
        low_res=True,
        **(size.network | {"remat": "products", "scan": False} if size.network else {}),
    )


def clip() -> CLIPConfig:
    """Small, a CLIP of 64 px. For two CPU cores and thousands of pictures, which it can learn by heart: watch what it
    says of those held out."""
    return _clip(SMALL)


def prior() -> PriorConfig:
    """Small. For two CPU cores."""
    return _prior(SMALL, width=192, num_layers=4)


def decoder() -> DecoderConfig:
    """Small, 64 px; it works at 32 px, its pixels folded 2 x 2 into channels. For two CPU cores."""
    return _decoder(SMALL, _unet(SMALL, channels=64, num_blocks=1, text_layers=2, patch=2))


def upsampler() -> UpsamplerConfig:
    """Small, 64 to 256 px as the paper's first upsampler. For two CPU cores; needs no captions."""
    return _upsampler(SMALL, _unet_256(SMALL, channels=48, num_blocks=1))


def clip_medium() -> CLIPConfig:
    """Medium, a CLIP of 128 px. For one GPU or a TPU host, and a hundred thousand pictures or more."""
    return _clip(MEDIUM)


def prior_medium() -> PriorConfig:
    """Medium. For one GPU or a TPU host."""
    return _prior(MEDIUM, width=768, num_layers=12)


def decoder_medium() -> DecoderConfig:
    """Medium, 64 px. For one GPU or a TPU host."""
    return _decoder(MEDIUM, _unet(MEDIUM, channels=128, num_blocks=2, text_layers=8))


def upsampler_medium() -> UpsamplerConfig:
    """Medium, 64 to 256 px. For one GPU or a TPU host; needs no captions."""
    return _upsampler(MEDIUM, _unet_256(MEDIUM, channels=96, num_blocks=2))


def clip_large() -> CLIPConfig:
    """Large, ViT-L/14. For a TPU slice of 32 chips or more, and tens of millions of pictures."""
    return _clip(LARGE)


def prior_large() -> PriorConfig:
    """Large. For a TPU slice of 32 chips or more."""
    return _prior(LARGE, width=1024, num_layers=20)


def decoder_large() -> DecoderConfig:
    """Large, 64 px. For a TPU slice of 32 chips or more."""
    return _decoder(LARGE, _unet(LARGE, channels=256, num_blocks=3, text_layers=12))


def upsampler_large() -> UpsamplerConfig:
    """Large, 64 to 256 px. For a TPU slice of 32 chips or more; needs no captions."""
    return _upsampler(LARGE, _unet_256(LARGE, channels=192, num_blocks=3))
