"""Turn images into points: z_i, what CLIP sees in them, and x_T, the noise that the decoder turns into them.

    python -m sample.invert photo.jpg --bundle demo --out out/points.npz     (and out/points.png beside it)
    python -m sample.invert photos/ --out out/points/                        (an .npz per image)

The sheet has a row per image: the image at the decoder's size, and what the decoder makes of its point. The other
commands take the .npz with --points in place of images.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from sample.common import Drawing, Request, image_files, overlay, read_fitted, stems
from sample.output import Record, check_free
from sample.points import Points, base_size, decode_points, find_points, write_points
from unclip_jax.bundle import store
from unclip_jax.cascade import choose_settings
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.editing.inversion import CORRECTIONS, faithful, psnr
from unclip_jax.images.pixels import grid
from unclip_jax.images.png import save_png


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Request):
    """Turn images into points (z_i, x_T)."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files of any size and kind, or folders of them; each is cropped to its central square."""
    out: Path = Path("out/points.npz")
    """An .npz for all points, with the sheet of what they give back beside it as a .png; a folder for an .npz per image
    and the sheet; or a .png for the sheet alone."""
    steps: int | None = None
    """Steps of the way back, and of the decoder on the way there, 50 by default; more is slower and nearer."""
    guidance_scale: float | None = None
    """How hard the embedding pulls; 1 by default, which is no guidance and the most faithful."""
    corrections: int = CORRECTIONS
    """How often each step is mended; each time costs as much as the step itself."""

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return image_files(self.images)


def run(options: Options) -> None:
    """Inverts, decodes again, saves and says how near the images came back."""
    options.check()
    if options.corrections < 0:
        raise UserError(f"corrections is {options.corrections}; it must be at least 0")
    files = image_files(options.images)
    sheet, points_files = paths(options.out, stems(files))
    check_free([sheet, *points_files], overwrite=options.overwrite)
    record = Record("sample.invert", options)
    compilation_cache.enable()
    bundle = store.load(options.bundle)
    how = overlay(faithful(), {"steps": options.steps, "guidance_scale": options.guidance_scale})
    settings = {"decoder": choose_settings(bundle, ["decoder"], {"decoder": how})["decoder"]}
    points = find_points(bundle, files, options.batch_size, how, options.corrections)
    size = base_size(bundle)
    drawing = Drawing(batch_size=options.batch_size, stop_at=size)
    images = decode_points(bundle, drawing, settings, points.z_i, x_T=points.x_T)
    originals = read_fitted(files, size)[0]
    nearness = psnr(originals, images)
    for name, value in zip(points.names, nearness, strict=True):
        print(f"{name}: PSNR {value:.2f} dB")
    print(f"median: PSNR {np.median(nearness):.2f} dB")
    for path, rows in zip(points_files, split(points, len(points_files)), strict=True):
        write_points(path, rows, bundle)
        print(path)
    both = np.stack([originals, images], axis=1).reshape(-1, size, size, 3)
    save_png(sheet, grid(both, 2), record.text(bundle, settings) | {"images": "\n".join(points.names)})
    print(sheet)


def paths(out: Path, names: Sequence[str]) -> tuple[Path, list[Path]]:
    """The sheet and the .npz files that --out asks for."""
    match out.suffix.lower():
        case ".npz":
            return out.with_suffix(".png"), [out]
        case ".png":
            return out, []
        case "":
            return out / "reconstruction.png", [out / f"{name}.npz" for name in names]
    raise UserError(f"{out} is no .npz; give a name that ends in .npz or .png, or a folder")


def split(points: Points, count: int) -> list[Points]:
    """All points in one, or one by one."""
    if count < 2:
        return [points] * count
    each = zip(points.names, points.z_i, points.x_T if points.x_T is not None else (), strict=True)
    return [Points(names=[name], z_i=z_i[None], x_T=x_T[None], how=points.how) for name, z_i, x_T in each]


def main() -> None:
    """Reads the options and runs."""
    run(command_line.parse(Options, prog="python -m sample.invert", description=__doc__))


if __name__ == "__main__":
    run_cli(main)
