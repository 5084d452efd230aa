"""Weights that are there already, trained on: those of a bundle, imported ones included, or of a run.

COMMAND   python -m train.decoder finetune --start-from BUNDLE --data.source BIRDS --name birds
DATA      as in docs/data.md; a few hundred pictures make a difference, and are soon learnt by heart

Network, process, sampling settings and CLIP are those of the weights; without --start-from, those of the demo. The rate
is a tenth of what such networks are trained at from nothing, and the moving average forgets within the run.
"""

import dataclasses

from unclip_jax.training.config import OptimConfig
from unclip_jax.training.origin import AnyConfig, find_start
from unclip_jax.training.stage_configs import CLIPConfig, DecoderConfig, PriorConfig, UpsamplerConfig

from . import photos

OPTIM = OptimConfig(learning_rate=1e-5, warmup_steps=100, beta2=0.98, ema_decay=0.998)
STEPS = 1000


def _of_demo(config: AnyConfig, writes: str | None = None) -> AnyConfig:
    workdir = config.run.workdir.replace("photos", "finetune")
    run = dataclasses.replace(config.run, workdir=workdir, steps=STEPS, save_every=250, sample_every=250, log_every=25)
    config = dataclasses.replace(config, optim=OPTIM, run=run)
    return dataclasses.replace(find_start(config, "demo", writes).shape(config), start_from="demo")


def clip() -> CLIPConfig:
    """A CLIP. What was conditioned on the old one does not fit the new one: train prior and decoder on as well."""
    return _of_demo(photos.clip())


def prior() -> PriorConfig:
    """A prior, with its CLIP and the statistics of z_i that it knows; --stats measure takes those of the new data."""
    return _of_demo(photos.prior())


def decoder() -> DecoderConfig:
    """A decoder, with its CLIP."""
    return _of_demo(photos.decoder())


def upsampler() -> UpsamplerConfig:
    """An upsampler; --model.image-size says which, where there are several. Needs no captions."""
    return _of_demo(photos.upsampler(), "image_64")
