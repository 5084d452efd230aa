"""Draw images larger, by a bundle's upsamplers alone.

    python -m sample.upscale photo.png --bundle demo --out out/large.png
    python -m sample.upscale photos/ --from-size 64 --out out/large/      (from the upsampler that starts at 64 px)

An image is first cropped to its central square and made as small as the upsampler's input: detail beyond that is drawn
anew.
"""

import dataclasses
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from sample.common import Drawing, image_files, in_batches, last, read_fitted, stage_settings, stems
from sample.output import Output
from unclip_jax.bundle import store
from unclip_jax.cascade import choose_settings
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import run_cli
from unclip_jax.editing.upscaling import upscale, upscaling_stages
from unclip_jax.images.pixels import to_float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    """Draw images larger."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files of any size and kind, or folders of them; each is cropped to its central square."""
    from_size: int | None = None
    """Start with the upsampler whose input has this size, in pixels; the first one by default."""
    out: Path = Path("out/upscaled.png")
    """A .png for all images in one grid, or a folder for one file each."""

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return image_files(self.images)


def run(options: Options) -> None:
    """Draws and saves."""
    files = image_files(options.images)
    names = stems(files)
    output = Output("sample.upscale", options, names)
    compilation_cache.enable()
    stages = upscaling_stages(store.load(options.bundle, weights=False), options.from_size, options.stop_at)
    bundle = store.load(options.bundle, parts=stages)
    settings = choose_settings(bundle, stages, stage_settings(bundle, options))
    (small,) = read_fitted(files, cast(int, bundle.parts[stages[0]].low_res_size))

    def draw(rows: np.ndarray) -> np.ndarray:
        drawn = upscale(
            bundle,
            jnp.asarray(to_float(small[rows])),
            jax.random.key(options.seed),
            indices=jnp.asarray(rows),
            settings=settings,
            stop_at=options.stop_at,
        )
        return last((f"{rows[-1] + 1} of {len(files)} images: {each.part}", each.value) for each in drawn)

    images = in_batches(draw, len(files), options.batch_size, options.only)
    about, each = {"images": "\n".join(names)}, [{"image": name} for name in names]
    output.save(bundle, {name: settings[name] for name in stages}, images, about, each)


def main() -> None:
    """Reads the options and runs."""
    run(command_line.parse(Options, prog="python -m sample.upscale", description=__doc__))


if __name__ == "__main__":
    run_cli(main)
