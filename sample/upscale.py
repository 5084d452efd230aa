"""Draw images larger, by a bundle's upsamplers alone.

    python -m sample.upscale photo.png --bundle demo --out out/large.png
    python -m sample.upscale photos/ --from-size 64 --out out/large/      (from the upsampler that starts at 64 px)

An image is first cropped to its central square and made as small as the upsampler's input: detail beyond that is drawn
anew.
"""

import dataclasses
from pathlib import Path

import tyro

from unclip_jax.bundle import store
from unclip_jax.core.errors import run_cli
from unclip_jax.editing.upscaling import upscaling_stages
from unclip_jax.images.files import image_files, read_fitted, stems
from unclip_jax.images.pixels import to_float, to_uint8
from unclip_jax.sampling.overrides import parse
from unclip_jax.sampling.session import Request

from .options import Drawing, Job, chosen_settings, open_session, report


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
    """Draw and save."""
    files = image_files(options.images)
    names = stems(files)
    job = Job.start("upscale", options, names)
    described = store.load(options.bundle, weights=False)
    stages = upscaling_stages(described, options.from_size, options.stop_at)
    session = open_session(options, stages)
    (array,) = described.stages[stages[0]].reads
    (small,) = read_fitted(files, int(array.removeprefix("image_")))
    settings = chosen_settings(described, options, stages)
    inputs = {array: to_float(small)}
    request = Request(inputs=inputs, seed=options.seed, until=stages[-1], settings=settings, only=options.only)
    images = to_uint8(session.result(request, report))
    job.save(described, settings, images, {"images": "\n".join(names)}, [{"image": name} for name in names])


def main() -> None:
    """Read the options and run."""
    run(parse(Options, __doc__))


if __name__ == "__main__":
    run_cli(main)
