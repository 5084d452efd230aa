"""The demo: a whole cascade on captioned shapes, CLIP to 128 px, for two CPU cores and an afternoon.

COMMAND   make train-demo                     (all five stages, those of pixels more than once, then the bundle)
DATA      60,000 captioned shapes at 128 px; six colour-shape pairs are never in it

What has to be learnt is who is where, and a bag of words does not say it: "a red circle above a blue square" has the
words of other pictures too. So training starts from something easier. Objects alone stand off the middle, half of the
time, and their captions say where; half of the captions of two say where each is; and CLIP sees every caption beside a
hard negative with its own words exchanged (the log's `over_negative` is the share of images that prefer their own). A
third of the objects in training captions go without their colour, so that CLIP has to look at shapes.

z_i then tells the whole scene, and the decoder reads it from there long before it has learnt to read the caption; it
works at 32 px and folds 2 x 2 pixels into channels, so that its first level costs what a 16 px image does. Shapes of
10 px and more outlive much noise: under the cosine schedule x_t gives the layout away but for the last tenth of the
steps, so the linear one is used, which has more of them there. The loss is plain, since min-SNR weights those steps
hardly at all.

The prior never meets a held-out pair in training; guidance holds it to the colour that the caption names.
"""

import dataclasses

from unclip_jax.data.captioned_shapes import scenes as shapes
from unclip_jax.data.config import DataConfig
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.stage_configs import CLIPConfig, DecoderConfig, PriorConfig, UpsamplerConfig

CONTEXT = 28
EMBED_DIM = 128

TRANSFORMER = OptimConfig(
    optimizer="muon",
    learning_rate=3e-3,
    adam_rate=0.5,
    warmup_steps=100,
    schedule="cosine",
    beta1=0.95,
    beta2=0.98,
    weight_decay=0.05,
    ema_decay=0.995,
)
U_NET = dataclasses.replace(TRANSFORMER, adam_rate=0.3, beta2=0.99, weight_decay=0.0)


def clip() -> CLIPConfig:
    """ViT on 32 px, in 64 patches of 4 x 4: 48 values into 96 channels, so the embedding of a patch loses nothing."""
    return CLIPConfig(
        model=CLIPSpec(
            embed_dim=EMBED_DIM,
            vision=VisionSpec(image_size=32, patch_size=4, width=96, num_layers=4, num_heads=4),
            text=TextSpec(vocab_size=512, context=CONTEXT, width=128, num_layers=2, num_heads=4, eos_id=1),
        ),
        data=DataConfig(batch_size=256),
        optim=TRANSFORMER,
        negatives=(" ".join(shapes.COLOURS), " ".join(shapes.SHAPES), "left right", "above below", "top bottom"),
        run=RunConfig(workdir="runs/shapes/clip", steps=1500, sample_every=500, save_every=250, log_every=25),
    )


def prior() -> PriorConfig:
    """A causal Transformer on CLIP's hidden states that predicts the whitened z_i."""
    return PriorConfig(
        model=PriorSpec(
            embed_dim=EMBED_DIM,
            context=CONTEXT,
            text_width=128,
            width=128,
            num_layers=4,
            num_heads=4,
            z_t_scale=EMBED_DIM**0.5,
        ),
        process=ProcessSpec(schedule="cosine", prediction="x0", variance="small"),
        data=DataConfig(batch_size=128),
        clip="runs/shapes/clip",
        optim=TRANSFORMER,
        run=RunConfig(workdir="runs/shapes/prior", steps=1500, sample_every=500, save_every=250, log_every=50),
        sampling=SamplingSettings(steps=16, guidance_scale=1.5, num_candidates=8),
    )


def decoder() -> DecoderConfig:
    """32 px, conditioned on z_i and on the caption through a small Transformer of its own."""
    return DecoderConfig(
        model=UNetSpec(
            image_size=32,
            patch=2,
            channels=48,
            channel_mult=(1, 2, 3),
            num_blocks=1,
            learned_sigma=True,
            attention_resolutions=(8, 4),
            head_channels=24,
            groups=16,
            embed_dim=EMBED_DIM,
            z_i_scale=EMBED_DIM**0.5,
            context_width=128,
            text=TextSpec(vocab_size=512, context=CONTEXT, width=128, num_layers=2, num_heads=4, eos_id=1),
        ),
        process=ProcessSpec(schedule="linear", prediction="v", variance="learned_range"),
        data=DataConfig(batch_size=32),
        clip="runs/shapes/clip",
        drop_z_i=0.2,
        drop_caption=0.3,
        optim=dataclasses.replace(U_NET, learning_rate=5e-3, warmup_steps=200, ema_decay=0.998),
        run=RunConfig(workdir="runs/shapes/decoder", steps=6000, sample_every=1000, save_every=500, log_every=50),
        sampling=SamplingSettings(steps=32, guidance_scale=1.5),
    )


def decoder_inpaint() -> DecoderConfig:
    """The shipped decoder made to inpaint as well: 2000 steps more, in which half of the images are masked."""
    config = decoder()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, inpainting=True),
        clip="demo",
        start_from="demo",
        optim=dataclasses.replace(config.optim, learning_rate=2e-3, warmup_steps=100),
        run=dataclasses.replace(config.run, workdir="runs/shapes/decoder_inpaint", steps=2000),
    )


def _upsampler(image_size: int, workdir: str) -> UpsamplerConfig:
    """The condition is degraded by blur, noise, resizing and JPEG in random order: a network that has seen nothing but
    clean ones takes the noise in what a small decoder draws for texture. For half of the examples it inpaints.
    """
    return UpsamplerConfig(
        model=UNetSpec(
            image_size=image_size,
            patch=2,
            channels=32,
            channel_mult=(1, 2, 2),
            num_blocks=1,
            learned_sigma=False,
            groups=16,
            low_res=True,
            inpainting=True,
        ),
        process=ProcessSpec(schedule="cosine", prediction="v", variance="small"),
        low_res=LowRes(scale=2, degradation="bsr", strength=0.5),
        data=DataConfig(batch_size=32),
        optim=U_NET,
        run=RunConfig(workdir=workdir, steps=5000, sample_every=1000, save_every=500, log_every=50),
        sampling=SamplingSettings(steps=12),
    )


def upsampler_64() -> UpsamplerConfig:
    """32 to 64 px; crops of half the image, for 16 px would show it no texture at all."""
    config = _upsampler(64, "runs/shapes/upsampler_64")
    return dataclasses.replace(config, crop_fraction=0.5)


def upsampler_128() -> UpsamplerConfig:
    """64 to 128 px."""
    return _upsampler(128, "runs/shapes/upsampler_128")
