"""Recipes: functions that return the whole config of a run, by stage and name."""

from collections.abc import Callable

from unclip_jax.training.stage_configs import Config

from . import finetune, paper, photos, shapes, tiny

RECIPES: dict[str, dict[str, Callable[[], Config]]] = {
    "clip": {
        "shapes": shapes.clip,
        "photos": photos.clip,
        "photos-medium": photos.clip_medium,
        "photos-large": photos.clip_large,
        "finetune": finetune.clip,
        "paper": paper.clip,
        "tiny": tiny.clip,
    },
    "prior": {
        "shapes": shapes.prior,
        "photos": photos.prior,
        "photos-medium": photos.prior_medium,
        "photos-large": photos.prior_large,
        "finetune": finetune.prior,
        "paper": paper.prior,
        "tiny": tiny.prior,
    },
    "decoder": {
        "shapes": shapes.decoder,
        "shapes-inpaint": shapes.decoder_inpaint,
        "photos": photos.decoder,
        "photos-medium": photos.decoder_medium,
        "photos-large": photos.decoder_large,
        "finetune": finetune.decoder,
        "paper": paper.decoder,
        "tiny": tiny.decoder,
    },
    "upsampler": {
        "shapes-64": shapes.upsampler_64,
        "shapes-128": shapes.upsampler_128,
        "paper-256": paper.upsampler_256,
        "paper-1024": paper.upsampler_1024,
        "photos": photos.upsampler,
        "photos-medium": photos.upsampler_medium,
        "photos-large": photos.upsampler_large,
        "finetune": finetune.upsampler,
        "tiny": tiny.upsampler,
    },
}
