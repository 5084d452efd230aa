"""An upsampler on a folder of your own photographs, small enough for a laptop.

COMMAND   python -m train.upsampler photos --data.source PHOTOS --run.steps 500
"""

from unclip_jax.data.config import DataConfig
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.stage_configs import UpsamplerConfig


def upsampler() -> UpsamplerConfig:
    """64 to 256 px, as the paper's first upsampler, at a hundredth of its size."""
    return UpsamplerConfig(
        model=UNetSpec(
            image_size=256,
            patch=2,
            channels=48,
            channel_mult=(1, 2, 3),
            num_blocks=1,
            learned_sigma=False,
            groups=16,
            low_res=True,
        ),
        process=ProcessSpec(schedule="cosine", prediction="v", variance="small"),
        low_res=LowRes(scale=4, degradation="blur"),
        data=DataConfig(source="photos", batch_size=8, flip=True),
        optim=OptimConfig(learning_rate=5e-4, warmup_steps=100, ema_decay=0.998),
        run=RunConfig(workdir="runs/photos/upsampler", steps=2000, sample_every=500, save_every=500, log_every=20),
        sampling=SamplingSettings(steps=27),
    )
