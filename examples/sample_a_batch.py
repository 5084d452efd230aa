"""Sample a batch of captions with the shipped system, and save a sheet of the pictures.

python examples/sample_a_batch.py
"""

from pathlib import Path

import unclip_jax
from unclip_jax.images.pixels import grid
from unclip_jax.images.png import save_png

CAPTIONS = ["a red circle above a blue square", "a yellow ring", "two green stars", "a purple triangle"]


def main(out: Path = Path("out/batch.png"), steps: int = 25) -> None:
    """Sample one picture of each caption; the same seed gives the same pictures, in batches of any size."""
    system = unclip_jax.load("demo")
    settings = {"decoder": unclip_jax.SamplingSettings(steps=steps, guidance_scale=1.5)}
    images = unclip_jax.text_to_image(system, CAPTIONS, seed=0, settings=settings)  # uint8 [4 128 128 3]
    out.parent.mkdir(parents=True, exist_ok=True)
    save_png(out, grid(images), {})
    print(f"{out}: {len(images)} pictures of {images.shape[1]} px")


if __name__ == "__main__":
    main()
