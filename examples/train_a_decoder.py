"""Train a small decoder on a folder of captioned images, with the CLIP of the shipped system, and sample it.

python examples/train_a_decoder.py PHOTOS

PHOTOS holds x.jpg with x.txt, or metadata.jsonl. Stop it when you like: the same command carries on.
"""

import dataclasses
import sys
from pathlib import Path

import unclip_jax
from unclip_jax.data import DataConfig
from unclip_jax.diffusion import FlowSpec
from unclip_jax.images.pixels import grid
from unclip_jax.images.png import save_png
from unclip_jax.models import UNetSpec
from unclip_jax.training import DecoderConfig, OptimConfig, RunConfig, assemble_unclip, train

MODEL = UNetSpec(
    image_size=32,
    channels=48,
    channel_mult=(1, 2, 2),
    num_blocks=1,
    groups=16,
    attention_resolutions=(8,),
    head_channels=24,
    learned_sigma=False,
    embed_dim=128,
    context_width=128,
    text_width=128,
)


def main(photos: Path, workdir: Path = Path("runs/photos/decoder"), model: UNetSpec = MODEL, steps: int = 2000) -> None:
    """Train by rectified flow, put the decoder into the shipped system's place, and sample a caption at its size."""
    config = DecoderConfig(
        model=model,
        process=FlowSpec(),
        data=DataConfig(source=str(photos), batch_size=16, flip=True),
        clip="demo",
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=steps // 20, ema_decay=0.998),
        run=RunConfig(workdir=str(workdir), steps=steps, save_every=500, sample_every=500, log_every=20),
        sampling=unclip_jax.SamplingSettings(sampler="heun", steps=12, guidance_scale=2.0),
    )
    train(config)
    demo = unclip_jax.load("demo")
    system = assemble_unclip(decoder=workdir, base=demo, name="photos", license="mine", description="")
    system = dataclasses.replace(system, sampling=system.sampling | {"decoder": config.sampling})
    images = unclip_jax.text_to_image(system, ["a photo"] * 4, seed=0, stop_at=model.image_size)
    save_png(workdir / "photo.png", grid(images), {})
    print(f"{workdir / 'photo.png'}: {len(images)} pictures of {images.shape[1]} px")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
