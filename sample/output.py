"""Where pictures go, and what they say of how they were drawn.

The text of every PNG has, besides what a person wants to know, the key `again`, from which `sample.again` draws it once
more:

    {"module": "sample.variations", "options": {...}, "inputs": {path: sha256}}
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sample.common import Drawing, Request
from unclip_jax.bundle.parts import Bundle
from unclip_jax.core.config import to_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.files import replacing
from unclip_jax.images.pixels import grid
from unclip_jax.images.png import save_png
from unclip_jax.stages.settings import StageSettings

AGAIN = "again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What stands under the key `again`."""

    module: str
    options: dict[str, Any]
    inputs: dict[str, str]


class Record:
    """What a picture says of how it was drawn. Made before any work: what is read may change meanwhile."""

    def __init__(self, module: str, options: Request):
        self._module, self._options = module, options
        self._inputs = hashes(options.inputs())

    def text(self, bundle: Bundle, settings: dict[str, StageSettings], only: int | None = None) -> dict[str, str]:
        """The text of a sheet, or of the one image `only` of the request."""
        options = self._options if only is None else dataclasses.replace(self._options, **{"only": only})
        recipe = Recipe(module=self._module, options=to_json(options), inputs=self._inputs)
        return {
            "software": "unclip_jax",
            "bundle": bundle.name,
            "bundle_hash": bundle.hash,
            **{name: str(value) for name, value in vars(options).items() if name in ("seed", "stop_at")},
            "settings": json.dumps({name: to_json(how) for name, how in settings.items()}),
            AGAIN: json.dumps(to_json(recipe), ensure_ascii=False),
        }


class Output:
    """Where the images of a request go; a .png for all of them, or a file each in a folder.

    Args:
        module: the command's, `sample.variations`.
        names: of the images' files in a folder, without suffix.
        suffixes: of other files that the command writes.

    Raises:
        UserError: the request makes no sense, something is in the way, or an input cannot be read.
    """

    def __init__(self, module: str, options: Drawing, names: Sequence[str], suffixes: Sequence[str] = ()):
        options.check()
        self._options, self._out = options, options.out
        kind = self._out.suffix.lower()
        if kind not in ("", ".png", *suffixes):
            others = "".join(f"{suffix}, " for suffix in suffixes)
            raise UserError(f"{self._out} is no PNG; give a name that ends in {others}.png, or a folder")
        if options.only is not None and not 0 <= options.only < len(names):
            raise UserError(f"only is {options.only}; this request draws images 0 to {len(names) - 1}")
        if options.only is not None and kind in suffixes:
            raise UserError(f"{self._out} is for all images; with --only, give a .png or a folder")
        self._numbers = list(range(len(names))) if options.only is None else [options.only]
        self._paths = [self._out / f"{names[i]}.png" for i in self._numbers] if not kind else [self._out]
        check_free(self._paths, overwrite=options.overwrite)
        self.record = Record(module, options)

    def save(
        self,
        bundle: Bundle,
        settings: dict[str, StageSettings],
        images: UInt8[np.ndarray, "n h w 3"],
        about: dict[str, str],
        about_each: Sequence[dict[str, str]],
        sheet: UInt8[np.ndarray, "h w 3"] | None = None,
    ) -> None:
        """Writes the PNG files and says on stdout which.

        Args:
            settings: of the stages that ran.
            images: all of the request, or the one that `only` names.
            about: further text of a sheet.
            about_each: further text of each image of the request.
            sheet: all images as one; a grid by default.
        """
        if self._options.only is None and self._out.suffix:
            save_png(self._out, grid(images) if sheet is None else sheet, self.record.text(bundle, settings) | about)
            print(self._out)
            return
        for number, path, image in zip(self._numbers, self._paths, images, strict=True):
            text = self.record.text(bundle, settings, only=number) | about_each[number] | {"index": str(number)}
            save_png(path, image, text)
            print(path)


def hashes(files: Sequence[Path]) -> dict[str, str]:
    """sha256 of files, by their names; UserError for one that cannot be read."""
    found = {}
    for file in files:
        try:
            with file.open("rb") as stream:
                found[str(file)] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}); check the name") from error
    return found


def check_free(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Raises UserError where a file cannot be written, or is there and not to be replaced."""
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file")
        if path.exists() and not overwrite:
            raise UserError(f"{path} is already there; give another --out, or replace it with --overwrite")
        for parent in path.parents:
            if parent.exists() and not parent.is_dir():
                raise UserError(f"{parent} is a file, so nothing can be written into it; give another --out")


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz that is either whole or absent."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    with replacing(path) as draft:
        draft.write_bytes(buffer.getvalue())
