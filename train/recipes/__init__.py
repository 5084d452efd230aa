"""Recipes: functions that return the whole config of a run, by stage and name."""

from collections.abc import Callable
from typing import Any

from train.recipes import paper, photos, shapes, tiny
from unclip_jax.bundle.parts import Kind

RECIPES: dict[Kind, dict[str, Callable[[], Any]]] = {
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
