"""Draw variations of images: other pictures that CLIP takes for the same thing.

python -m sample.variations photo.jpg --bundle demo --num-images 4 --out out/variations.png
python -m sample.variations photo.jpg --from-inversion --decoder.eta 0.5 --out out/near.png    (closer to the image)
python -m sample.variations a.png b.png --out out/                                             (a file each)
"""

import dataclasses
from pathlib import Path

import numpy as np

from unclip_jax.core.errors import run_cli
from unclip_jax.sampling.overrides import parse

from .options import FromImages, Job, latents_of, open_session, with_originals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(FromImages):
    """Draw variations of images with a trained bundle."""

    num_images: int = 4
    """Variations of each image."""
    out: Path = Path("out/variations.png")
    """A .png with a row per image, the image itself first; or a folder for one file per variation."""
    from_inversion: bool = False
    """Start from the noise that the decoder turns into the image itself, instead of noise of its own; --decoder.eta
    then says how far to stray: 0, the default, draws the image itself again; 1 keeps little more than what CLIP sees
    in it. Taken for granted with --latents."""


def run(options: Options) -> None:
    """Draw and save."""
    names = options.names()
    options.check_count(len(names), options.num_images)
    job = Job.start("variations", options, [f"{name}_{i:02d}" for name in names for i in range(options.num_images)])
    session = open_session(options)
    inverted = options.from_inversion or options.latents is not None
    latents, settings, decode = latents_of(session.system, options, inverted=inverted)
    source = np.repeat(np.arange(len(names)), options.num_images)
    x_T = None if latents.x_T is None else latents.x_T[source]
    images = decode(session, latents.z_i[source], x_T=x_T, only=options.only)
    sheet = with_originals(options, images, options.num_images)
    each = [{"image": names[i]} for i in source]
    job.save(session.system, settings, images, {"images": "\n".join(names)}, each, sheet)


def main() -> None:
    """Read the options and run."""
    run(parse(Options, __doc__))


if __name__ == "__main__":
    run_cli(main)
