"""The paper's own sizes and hyper-parameters (2204.06125, table 3). Nobody has trained these in public.

COMMAND   python -m train.prior paper --data.source /path/to/images --clip CLIP --run.workdir runs/prior
HARDWARE  TPU slices of 64 chips and more, over 64 of which parameters are split; `python -m train.plan paper --topology
          v5e:16x16` says what each stage needs there
"""

from unclip_jax.data.config import DataConfig
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.clip import vit_h16
from unclip_jax.models.prior import paper_prior
from unclip_jax.models.unet import paper_decoder, paper_upsampler_256, paper_upsampler_1024
from unclip_jax.parallel.mesh import MeshSpec
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.stage_configs import CLIPConfig, DecoderConfig, PriorConfig, UpsamplerConfig


def _run(name: str, iterations: int) -> RunConfig:
    return RunConfig(
        workdir=f"runs/paper/{name}",
        steps=iterations,
        save_every=5000,
        sample_every=5000,
        mesh=MeshSpec(data=-1, fsdp=64),
    )


def clip() -> CLIPConfig:
    """ViT-H/16. The paper trains it with SAM (rho 0.1, learning rate 3e-4); this is AdamW at that rate."""
    return CLIPConfig(
        model=vit_h16(),
        data=DataConfig(batch_size=32768),
        optim=OptimConfig(learning_rate=3e-4, warmup_steps=10_000, schedule="cosine", beta2=0.98, weight_decay=0.2),
        run=_run("clip", 640_000),
    )


def prior() -> PriorConfig:
    """The diffusion prior, 1B.

    The paper samples it by Analytic-DPM, which needs statistics of the trained network: once packed,
    `python -m train.measure BUNDLE --data FOLDER` measures them, and `python -m train.pack OUT --base BUNDLE
    --prior.sampler analytic` makes it the default.
    """
    return PriorConfig(
        model=paper_prior(),
        process=ProcessSpec(schedule="cosine", prediction="x0", variance="small"),
        normalise="scale",
        data=DataConfig(batch_size=4096),
        optim=OptimConfig(
            learning_rate=1.1e-4, warmup_steps=10_000, beta2=0.96, eps=1e-6, weight_decay=6e-2, ema_decay=0.9999
        ),
        run=_run("prior", 600_000),
        sampling=SamplingSettings(steps=64, guidance_scale=4.0, num_candidates=2),
    )


def decoder() -> DecoderConfig:
    """The decoder at 64 px, 3.5B."""
    return DecoderConfig(
        model=paper_decoder(),
        process=ProcessSpec(schedule="cosine", prediction="eps", variance="learned_range"),
        data=DataConfig(batch_size=2048),
        optim=OptimConfig(learning_rate=1.2e-4, warmup_steps=10_000, ema_decay=0.9999),
        run=_run("decoder", 800_000),
        sampling=SamplingSettings(steps=250, guidance_scale=3.0),
    )


def upsampler_256() -> UpsamplerConfig:
    """64 to 256 px, 700M."""
    return UpsamplerConfig(
        model=paper_upsampler_256(),
        process=ProcessSpec(schedule="cosine", prediction="eps", variance="small"),
        low_res=LowRes(scale=4, degradation="blur"),
        data=DataConfig(batch_size=1024),
        optim=OptimConfig(learning_rate=1.2e-4, warmup_steps=10_000, ema_decay=0.9999),
        run=_run("upsampler_256", 1_000_000),
        sampling=SamplingSettings(steps=27),
    )


def upsampler_1024() -> UpsamplerConfig:
    """256 to 1024 px, 300M."""
    return UpsamplerConfig(
        model=paper_upsampler_1024(),
        process=ProcessSpec(schedule="linear", prediction="eps", variance="small"),
        low_res=LowRes(scale=4, degradation="bsr"),
        data=DataConfig(batch_size=512),
        optim=OptimConfig(learning_rate=1e-4, warmup_steps=10_000, ema_decay=0.9999),
        run=_run("upsampler_1024", 1_000_000),
        sampling=SamplingSettings(steps=15),
    )
