"""Where the pictures of a request go: a .png for all of them, or a file each in a folder."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import check_writable, write_all
from unclip_jax.images.pixels import grid
from unclip_jax.images.png import save_png
from unclip_jax.sampling.provenance import Provenance
from unclip_jax.systems.system import Settings, System


class Output:
    """The files of a request.

    Args:
        out: a .png, or a folder.
        names: of the images' files in a folder, without suffix.
        only: the one image that is written; all for None.
        overwrite: replace what is already there.
        suffixes: of other files that the command writes itself.

    Raises:
        UserError: something is in the way, or the request has no image `only`.
    """

    def __init__(
        self, out: Path, names: Sequence[str], only: int | None, overwrite: bool, suffixes: Sequence[str] = ()
    ):
        kind = out.suffix.lower()
        if kind not in ("", ".png", *suffixes):
            others = "".join(f"{suffix}, " for suffix in suffixes)
            raise UserError(f"{out} is no PNG; give a name that ends in {others}.png, or a folder")
        if only is not None and not 0 <= only < len(names):
            raise UserError(f"only is {only}; this request draws images 0 to {len(names) - 1}")
        if only is not None and kind in suffixes:
            raise UserError(f"{out} is for all images; with --only, give a .png or a folder")
        self._out, self._only = out, only
        self._numbers = list(range(len(names))) if only is None else [only]
        self._paths = [out / f"{names[i]}.png" for i in self._numbers] if not kind else [out]
        check_writable(self._paths, overwrite=overwrite)

    def save(
        self,
        provenance: Provenance,
        system: System,
        settings: Settings,
        images: UInt8[np.ndarray, "n h w 3"],
        about: dict[str, str],
        about_each: Sequence[dict[str, str]],
        sheet: UInt8[np.ndarray, "grid_h grid_w 3"] | None = None,
    ) -> list[Path]:
        """Write the PNG files and return their names; UserError where they had to be written elsewhere.

        Args:
            settings: of the stages that ran.
            images: all of the request, or the one that `only` names.
            about: further text of a sheet.
            about_each: further text of each image of the request.
            sheet: all images as one; a grid by default.
        """
        if self._only is None and self._out.suffix:
            text = provenance.text(system, settings) | about
            return write_all([(self._out, lambda path: save_png(path, grid(images) if sheet is None else sheet, text))])

        def picture(number: int, image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
            text = provenance.text(system, settings, only=number) | about_each[number] | {"index": str(number)}
            save_png(path, image, text)

        rows = zip(self._numbers, self._paths, images, strict=True)
        return write_all((path, functools.partial(picture, number, image)) for number, path, image in rows)
