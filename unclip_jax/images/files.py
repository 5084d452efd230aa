"""Image files that a person names: alone, in folders, and cropped to what networks see."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.errors import UserError
from unclip_jax.images.transforms import fit, read_image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def image_files(paths: Sequence[Path]) -> list[Path]:
    """List the images that `paths` name: files as they stand, folders as the images in them, sorted by name.

    Raises UserError where there are none.
    """
    files = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        try:
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); give a folder that can") from error
        inside = [each for each in inside if not each.name.startswith(".")]
        if not inside:
            raise UserError(f"{path} holds no images; give a folder of {' '.join(IMAGE_SUFFIXES)}")
        files += inside
    if not files:
        raise UserError("no image given; name one or more files, or a folder of them")
    return files


def stems(files: Sequence[Path]) -> list[str]:
    """Return a name for what is made of each file: its own without the suffix, with numbers before them if two are
    alike."""
    names = [file.stem for file in files]
    return names if len(set(names)) == len(names) else [f"{i:04d}_{name}" for i, name in enumerate(names)]


def read_fitted(files: Sequence[Path], *sizes: int) -> list[UInt8[np.ndarray, "n size size 3"]]:
    """Read the central squares of image files at each of `sizes`; each file is read once."""
    rows = []
    for file in files:
        picture = read_image(file)
        rows.append([fit(picture, size) for size in sizes])
    return [np.stack(column) for column in zip(*rows, strict=True)]
