"""A whole cascade that trains in seconds: for tests, and to see that an installation works. It draws nothing well.

COMMAND   python -m train.clip tiny && python -m train.prior tiny && python -m train.decoder tiny
"""

from unclip_jax.data.config import DataConfig
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.stage_configs import CLIPConfig, DecoderConfig, PriorConfig, UpsamplerConfig

TEXT = TextSpec(vocab_size=320, context=48, width=16, num_layers=1, num_heads=2, eos_id=1)
DATA = DataConfig(batch_size=8, num_train=64, resolution=32)
OPTIM = OptimConfig(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9)


def _run(name: str) -> RunConfig:
    return RunConfig(workdir=f"runs/tiny/{name}", steps=4, save_every=2, sample_every=2, log_every=1)


def clip() -> CLIPConfig:
    """Two towers of one block."""
    vision = VisionSpec(image_size=16, patch_size=8, width=16, num_layers=1, num_heads=2)
    return CLIPConfig(model=CLIPSpec(embed_dim=16, vision=vision, text=TEXT), data=DATA, optim=OPTIM, run=_run("clip"))


def prior() -> PriorConfig:
    """One block."""
    return PriorConfig(
        model=PriorSpec(embed_dim=16, context=48, text_width=16, width=16, num_layers=1, num_heads=2, z_t_scale=4.0),
        process=ProcessSpec(num_steps=100, prediction="x0"),
        data=DATA,
        clip="runs/tiny/clip",
        optim=OPTIM,
        run=_run("prior"),
        sampling=SamplingSettings(steps=3),
    )


def _unet(**fields) -> UNetSpec:
    return UNetSpec(channels=8, channel_mult=(1, 2), num_blocks=1, groups=4, head_channels=8, **fields)


def decoder() -> DecoderConfig:
    """8 px."""
    return DecoderConfig(
        model=_unet(
            image_size=8, learned_sigma=True, attention_resolutions=(4,), embed_dim=16, context_width=16, text=TEXT
        ),
        process=ProcessSpec(num_steps=100, variance="learned_range"),
        data=DATA,
        clip="runs/tiny/clip",
        optim=OPTIM,
        run=_run("decoder"),
        sampling=SamplingSettings(steps=3, guidance_scale=2.0),
    )


def upsampler() -> UpsamplerConfig:
    """8 to 16 px."""
    return UpsamplerConfig(
        model=_unet(image_size=16, learned_sigma=False, low_res=True),
        process=ProcessSpec(num_steps=100),
        low_res=LowRes(scale=2),
        crop_fraction=0.5,
        data=DATA,
        optim=OPTIM,
        run=_run("upsampler"),
        sampling=SamplingSettings(steps=3),
    )
