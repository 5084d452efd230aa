"""Recipes: functions that return the whole config of a run, by stage and name."""

from collections.abc import Callable

from unclip_jax.training.stage_configs import Config

from . import paper, photos, shapes, tiny

RECIPES: dict[str, dict[str, Callable[[], Config]]] = {
    "clip": {"shapes": shapes.clip, "paper": paper.clip, "tiny": tiny.clip},
    "prior": {"shapes": shapes.prior, "paper": paper.prior, "tiny": tiny.prior},
    "decoder": {
        "shapes": shapes.decoder,
        "shapes-inpaint": shapes.decoder_inpaint,
        "paper": paper.decoder,
        "tiny": tiny.decoder,
    },
    "upsampler": {
        "shapes-64": shapes.upsampler_64,
        "shapes-128": shapes.upsampler_128,
        "paper-256": paper.upsampler_256,
        "paper-1024": paper.upsampler_1024,
        "photos": photos.upsampler,
        "tiny": tiny.upsampler,
    },
}
