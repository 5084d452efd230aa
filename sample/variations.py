"""Draw variations of images: other pictures that CLIP takes for the same thing.

python -m sample.variations photo.jpg --bundle demo --num-images 4 --out out/variations.png
python -m sample.variations photo.jpg --from-inversion --eta 0.5 --out out/near.png    (stays closer to the image)
python -m sample.variations a.png b.png --out out/                                     (one file per variation)
"""

import dataclasses
from pathlib import Path

import numpy as np

from sample.common import FromImages
from sample.output import Output
from sample.points import decode_points, points_of, source_names, with_originals
from unclip_jax.bundle import store
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(FromImages):
    """Draw variations of images with a trained bundle."""

    num_images: int = 4
    """Variations of each image."""
    out: Path = Path("out/variations.png")
    """A .png with a row per image, the image itself first; or a folder for one file per variation."""
    from_inversion: bool = False
    """Start from the noise that the decoder turns into the image itself, instead of noise of its own. Taken for granted
    with --points."""
    eta: float | None = None
    """Noise of the decoder's DDIM. With --from-inversion, how far to stray: 0, the default then, draws the image itself
    again; 1 keeps little more than what CLIP sees in it."""


def run(options: Options) -> None:
    """Draws and saves."""
    if options.num_images < 1:
        raise UserError(f"num_images is {options.num_images}; it must be at least 1")
    names = source_names(options)
    files = [f"{name}_{number:02d}" for name in names for number in range(options.num_images)]
    output = Output("sample.variations", options, files)
    compilation_cache.enable()
    bundle = store.load(options.bundle)
    inverted = options.from_inversion or options.points is not None
    points, settings = points_of(bundle, options, inverted=inverted, eta=options.eta)
    source = np.repeat(np.arange(len(names)), options.num_images)
    x_T = None if points.x_T is None else points.x_T[source]
    images = decode_points(bundle, options, settings, points.z_i[source], x_T=x_T)
    sheet = with_originals(options, images, options.num_images)
    output.save(bundle, settings, images, {"images": "\n".join(names)}, [{"image": names[i]} for i in source], sheet)


def main() -> None:
    """Reads the options and runs."""
    run(command_line.parse(Options, prog="python -m sample.variations", description=__doc__))


if __name__ == "__main__":
    run_cli(main)
