"""Turn images into latents: z_i, what CLIP sees in them, and x_T, the noise that the decoder turns into them.

    python -m sample.invert photo.jpg --bundle demo --out out/latents.npz    (and out/latents.png beside it)
    python -m sample.invert photos/ --out out/latents/                       (an .npz per image)

The sheet has a row per image: the image at the decoder's size, and what the decoder makes of its latents. The other
commands take the .npz with --latents in place of images. --decoder.steps and --decoder.guidance-scale are those of both
ways; 50 steps without guidance by default, which is the most faithful.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from unclip_jax.core import compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import check_writable, write_all
from unclip_jax.editing.inversion import CORRECTIONS, inversion_settings
from unclip_jax.editing.latents import Latents, base_size, encode_files, save_latents
from unclip_jax.images.files import image_files, read_fitted, stems
from unclip_jax.images.pixels import grid
from unclip_jax.images.png import save_png
from unclip_jax.images.quality import psnr
from unclip_jax.sampling.overrides import parse
from unclip_jax.sampling.provenance import Provenance

from .options import Drawing, Request, chosen_settings, decode, open_session, say

MAX_CORRECTIONS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Request):
    """Turn images into latents (z_i, x_T)."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files of any size and kind, or folders of them; each is cropped to its central square."""
    out: Path = Path("out/latents.npz")
    """An .npz for all latents, with the sheet of what they give back beside it as a .png; a folder for an .npz per
    image and the sheet; or a .png for the sheet alone."""
    corrections: int = CORRECTIONS
    """How often each step is mended; each time costs as much as the step itself."""

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return image_files(self.images)


def run(options: Options) -> None:
    """Invert, decode again, save and say how near the images came back."""
    options.check()
    if not 0 <= options.corrections <= MAX_CORRECTIONS:
        raise UserError(f"corrections is {options.corrections}; choose 0 to {MAX_CORRECTIONS}")
    files = image_files(options.images)
    sheet, latent_files = paths(options.out, stems(files))
    check_writable([sheet, *latent_files], overwrite=options.overwrite)
    provenance = Provenance.of("invert", options, options.files())
    compilation_cache.enable()
    session = open_session(options)
    system, size = session.system, base_size(session.system)
    decoder = system.reader("z_i")
    settings = chosen_settings(system, options, [decoder], {decoder: inversion_settings()})
    how = {"settings": settings[decoder], "corrections": options.corrections, "report": say}
    latents = encode_files(system, files, batch_size=options.batch_size, **how)
    images = decode(session, Drawing(stop_at=size), settings, latents.z_i, x_T=latents.x_T)
    originals = read_fitted(files, size)[0]
    nearness = psnr(originals, images)
    for name, value in zip(latents.names, nearness, strict=True):
        print(f"{name}: PSNR {value:.2f} dB")
    print(f"median: PSNR {np.median(nearness):.2f} dB")
    both = np.stack([originals, images], axis=1).reshape(-1, size, size, 3)
    text = provenance.text(system, settings) | {"images": "\n".join(latents.names)}
    rows = split(latents, len(latent_files))
    found = [functools.partial(save_latents, latents=each, system=system) for each in rows]
    files = [*zip(latent_files, found, strict=True), (sheet, lambda path: save_png(path, grid(both, 2), text))]
    for path in write_all(files):
        print(path)


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


def split(latents: Latents, count: int) -> list[Latents]:
    """All latents in one, or one by one."""
    if count < 2:
        return [latents] * count
    each = zip(latents.names, latents.z_i, latents.x_T if latents.x_T is not None else (), strict=True)
    return [Latents(names=[name], z_i=z_i[None], x_T=x_T[None], settings=latents.settings) for name, z_i, x_T in each]


def main() -> None:
    """Read the options and run."""
    run(parse(Options, __doc__))


if __name__ == "__main__":
    run_cli(main)
