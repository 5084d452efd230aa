"""Which images of a folder can be read, and how large they are: checked once, remembered under size and time."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL

from unclip_jax.core.files import atomic_write, cache_folder
from unclip_jax.images.transforms import BrokenImageError, read_image

CACHE_VERSION = f"2, Pillow {PIL.__version__}"  # which files are readable depends on Pillow
ANNOUNCED_CHECK = 1_000

Verdict = tuple[int, int, int, str | None]
"""Bytes, modification time in ns, shorter side in px, and what is wrong."""


def check_images(folder: Path, names: Sequence[str], min_side: int, cache_file: Path) -> dict[str, str]:
    """Return the images that do not decode, or are smaller than `min_side` px, with reasons.

    New and changed files are decoded in full, by a pool of threads; the cache knows the others.
    """
    cache = _load(cache_file)
    stamps = {name: _stamp(folder / name) for name in names}
    checked = {name: cache[name] for name in names if name in cache and cache[name][:2] == stamps[name]}
    new = [name for name in names if name not in checked]
    if len(new) >= ANNOUNCED_CHECK:
        print(f"checking {len(new):,} images in {folder}", file=sys.stderr)
    if new:
        try:
            with ThreadPoolExecutor() as pool:
                for name, seen in zip(new, pool.map(lambda name: _look(folder, name), new), strict=True):
                    checked[name] = (*stamps[name], *seen)
        finally:  # an interrupted check of a large folder goes on where it stopped
            _save(cache_file, checked)
    bad = {}
    for name in names:
        *_, side, reason = checked[name]
        if reason is not None:
            bad[name] = reason
        elif side < min_side:
            bad[name] = f"its shorter side has {side} px, fewer than min_side {min_side}"
    return bad


def cache_file_of(folder: Path, cache_dir: str | Path | None) -> Path:
    """Return where verdicts on a folder are kept: in `cache_dir`, or the user's cache folder."""
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return (cache_folder() if cache_dir is None else Path(cache_dir)) / f"folder-{digest}.json"


def _look(folder: Path, name: str) -> tuple[int, str | None]:
    """Return an image's shorter side, and what is wrong."""
    try:
        return min(read_image(folder / name, name=name).size), None
    except BrokenImageError as error:
        return 0, str(error).removeprefix(f"{name}: ")


def _stamp(file: Path) -> tuple[int, int]:
    """Return (bytes, modification time in ns); zeros for a link that leads nowhere, which then fails to read."""
    try:
        status = os.stat(file)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _load(file: Path) -> dict[str, Verdict]:
    """Return what is remembered; nothing where there is no cache or it cannot be used."""
    try:
        cache = json.loads(file.read_text("utf-8"))
        if cache["version"] != CACHE_VERSION:
            return {}
        return {
            name: (int(size), int(time), int(side), None if reason is None else str(reason))
            for name, (size, time, side, reason) in cache["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _save(file: Path, files: dict[str, Verdict]) -> None:
    try:
        with atomic_write(file) as draft:
            draft.write_text(json.dumps({"version": CACHE_VERSION, "files": files}), "utf-8")
    except OSError:
        return  # a read-only home costs the next start a check, no more
