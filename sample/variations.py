"""Draw variations of images: other pictures that CLIP takes for the same thing.

    python -m sample.variations photo.jpg --bundle demo --num-images 4 --out out/variations.png
    python -m sample.variations a.png b.png --out out/        (one file per variation)
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from unclip_jax import command_line, compilation_cache
from unclip_jax.bundle import store
from unclip_jax.cascade import choose_settings, default_settings, stages_until
from unclip_jax.config import to_json
from unclip_jax.data.transforms import fit, read_image
from unclip_jax.editing.variations import variations
from unclip_jax.errors import UserError, run_cli
from unclip_jax.images import grid, save_png, to_float, to_uint8
from unclip_jax.models.clip import CLIPSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Draw variations of images with a trained bundle."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files of any size and kind; each is cropped to its central square."""
    bundle: str = "demo"
    """A bundle's folder, or the name of a shipped one."""
    num_images: int = 4
    """Variations of each image."""
    seed: int = 0
    """Another seed, other variations; the same seed, the same."""
    out: Path = Path("out/variations.png")
    """A .png with a row per image, the image itself first; or a folder for one file per variation."""
    guidance_scale: float | None = None
    """How hard the embedding pulls; the bundle's own by default."""
    steps: int | None = None
    """Network evaluations of the decoder; the bundle's own by default."""
    stop_at: int | None = None
    """Stop at images of this many pixels instead of running the whole cascade."""


def main() -> None:
    """Reads the options, draws, saves."""
    options: Options = command_line.parse(Options, prog="python -m sample.variations", description=__doc__)
    if not options.images:
        raise UserError("no image given; name one or more files")
    if options.num_images < 1:
        raise UserError(f"num_images is {options.num_images}; it must be at least 1")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"seed is {options.seed}; it must be at least 0 and below 2**32")
    if options.out.suffix.lower() not in ("", ".png"):
        raise UserError(f"{options.out} is no PNG; give a name that ends in .png, or a folder")
    pictures = [read_image(path) for path in options.images]
    compilation_cache.enable()
    bundle = store.load(options.bundle)
    names = stages_until(bundle, options.stop_at, "decoder")
    decoder = default_settings(bundle)["decoder"]
    given = {name: getattr(options, name) for name in ("guidance_scale", "steps")}
    decoder = dataclasses.replace(decoder, **{name: value for name, value in given.items() if value is not None})
    settings = choose_settings(bundle, names, {"decoder": decoder})
    size = cast(CLIPSpec, bundle.part("clip").spec).image_tower.image_size
    rows = []
    for i, picture in enumerate(pictures):
        first = i * options.num_images
        drawn = None
        seen = np.repeat(to_float(fit(picture, size))[None], options.num_images, axis=0)
        for drawn in variations(
            bundle,
            jnp.asarray(seen),
            jax.random.key(options.seed),
            indices=jnp.arange(first, first + options.num_images),
            settings=settings,
            stop_at=options.stop_at,
        ):
            jax.block_until_ready(drawn.value)
            print(f"image {i + 1} of {len(pictures)}: {drawn.part}", file=sys.stderr)
        assert drawn is not None
        rows.append(to_uint8(drawn.value))
    about = {
        "software": "unclip_jax",
        "bundle": bundle.name,
        "bundle_hash": bundle.hash,
        "seed": str(options.seed),
        "settings": json.dumps({name: to_json(settings[name]) for name in names}),
    }
    if options.out.suffix.lower() == ".png":
        side = rows[0].shape[1]
        sheet = [np.concatenate([fit(picture, side)[None], row]) for picture, row in zip(pictures, rows, strict=True)]
        text = about | {"images": "\n".join(path.name for path in options.images)}
        save_png(options.out, grid(np.concatenate(sheet), 1 + options.num_images), text)
        print(options.out)
        return
    for path, row in zip(options.images, rows, strict=True):
        for number, image in enumerate(row):
            target = options.out / f"{path.stem}_{number:02d}.png"
            save_png(target, image, about | {"image": path.name, "index": str(number)})
            print(target)


if __name__ == "__main__":
    run_cli(main)
