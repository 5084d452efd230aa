"""A folder of images with captions, as people have them on disk.

    photos/cat.jpg + photos/cat.txt       a caption file beside each image, or
    metadata.jsonl / metadata.csv         rows of file_name (relative to this file) and text or caption

Every image is decoded in full once, before the first record is served, by a pool of threads; the verdicts are
kept in a cache under size and modification time, so the next start reads no pixels. Checking first, and not
while training, has three reasons: a folder that is too damaged stops the run at its start, not after hours;
record i is the same file on every host and in every worker; and what is left out is known and reported.
"""

import csv
import hashlib
import json
import os
import posixpath
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write
from unclip_jax.data.records import Record
from unclip_jax.images.files import IMAGE_SUFFIXES
from unclip_jax.images.transforms import BrokenImageError, read_image

CAPTION_COLUMNS = ("text", "caption")
CACHE_VERSION = f"1, Pillow {PIL.__version__}"  # which files are readable depends on Pillow
ANNOUNCED_CHECK = 1_000


class FolderSource:
    """Images under a folder, at any depth, sorted by path; hidden files and linked folders are left alone.

    Args:
        path: the folder.
        max_bad_share: largest share of images that may be left out: unreadable, without a caption, or missing
            though the metadata names them.
        captions: False takes images alone; every caption is then "".
        cache_dir: where verdicts are kept; the user's cache folder where it is None.

    Raises UserError where there is nothing to read or too much is broken.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_bad_share: float = 0.01,
        captions: bool = True,
        cache_dir: str | Path | None = None,
    ):
        self._folder = Path(path).expanduser().absolute()
        if not self._folder.is_dir():
            raise UserError(f"{self._folder} is not a folder; give a folder of images")
        names = sorted(_walk(self._folder))
        images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        if not images:
            raise UserError(f"{self._folder} holds no images; give a folder of {' '.join(IMAGE_SUFFIXES)}")
        self._bad: dict[str, str] = {}
        found = self._find_captions(images, names) if captions else dict.fromkeys(images, "")
        self._bad |= _verify(self._folder, [name for name in images if name in found], cache_dir)
        self._names = [name for name in images if name in found and name not in self._bad]
        self._captions = [found[name] for name in self._names]
        self._check_share(max_bad_share)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        name = self._names[index]
        image = read_image(self._folder / name)
        return Record(image=np.array(image), caption=self._captions[index], name=name)

    def report(self) -> dict[str, Any]:
        """Report what was taken and what was left out: {"images": int, "bad": {relative path: reason}}."""
        return {"images": len(self), "bad": dict(sorted(self._bad.items()))}

    def _find_captions(self, images: list[str], names: list[str]) -> dict[str, str]:
        """Collect captions by image name; images without one, and rows without an image, go to `self._bad`."""
        known = {unicodedata.normalize("NFC", name): name for name in images}
        texts = set(names)
        captions: dict[str, str] = {}
        for name in images:
            text_name = posixpath.splitext(name)[0] + ".txt"
            if text_name in texts:
                try:
                    captions[name] = _one_line((self._folder / text_name).read_text("utf-8-sig"))
                except UnicodeDecodeError:
                    self._bad[name] = f"{text_name} is not UTF-8"
        for metadata in names:
            if posixpath.basename(metadata) not in ("metadata.jsonl", "metadata.csv"):
                continue
            for file_name, caption in _read_metadata(self._folder, metadata):
                # macOS hands out decomposed names for files whose metadata was written composed.
                name = known.get(unicodedata.normalize("NFC", file_name))
                if name is None:
                    self._bad[file_name] = f"named in {metadata} but missing"
                else:
                    captions[name] = _one_line(caption)
        captions = {name: caption for name, caption in captions.items() if caption}
        if not captions:
            raise UserError(
                f"{self._folder} holds {len(images)} images and no captions; put x.txt beside x.jpg or write "
                "metadata.jsonl with file_name and text"
            )
        for name in images:
            if name not in captions:
                self._bad.setdefault(name, "no caption")
        return captions

    def _check_share(self, max_bad_share: float) -> None:
        if not self._bad:
            return
        total = len(self._bad) + len(self._names)
        reasons = [f"{name}: {reason}" for name, reason in sorted(self._bad.items())]
        found = f"{len(reasons)} of {total} images in {self._folder} are unusable"
        shown = "; ".join(reasons[:3]) + ("; ..." if len(reasons) > 3 else "")
        if len(reasons) > max_bad_share * total or not self._names:
            share = f"{len(reasons) / total:.1%}, limit {max_bad_share:.1%}"
            raise UserError(f"{found} ({share}); mend or remove them: {shown}")
        print(f"{found} and left out: {shown}", file=sys.stderr)


def _walk(folder: Path) -> Iterator[str]:
    """Yield relative names, with forward slashes, of the files under a folder that are not hidden."""
    for directory, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = Path(directory).relative_to(folder)
        yield from ((relative / name).as_posix() for name in files if not name.startswith("."))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read_metadata(folder: Path, metadata: str) -> Iterator[tuple[str, str]]:
    """Yield (image name relative to the folder, caption) for each row of a metadata file."""
    for number, row in enumerate(_rows(folder / metadata), start=1):
        place = f"{folder / metadata}, row {number}"
        column = next((name for name in CAPTION_COLUMNS if isinstance(row.get(name), str)), None)
        file_name = row.get("file_name")
        if not isinstance(file_name, str) or column is None:
            raise UserError(f"{place}: no file_name and text; every row needs both (or caption for text)")
        name = posixpath.normpath(posixpath.join(posixpath.dirname(metadata), file_name.replace("\\", "/")))
        if posixpath.isabs(name) or name.split("/")[0] == "..":
            raise UserError(f"{place}: {file_name!r} lies outside {folder}; move the image inside")
        yield name, row[column]


def _rows(file: Path) -> Iterable[dict[str, Any]]:
    """Yield the rows of a .jsonl or .csv file as dicts."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            if file.suffix == ".csv":
                return list(csv.DictReader(stream))
            rows = [json.loads(line) for line in stream if line.strip()]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}); mend it") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} must hold one JSON object a line; mend it")
    return rows


def _verify(folder: Path, names: list[str], cache_dir: str | Path | None) -> dict[str, str]:
    """Find the images that do not decode, with reasons."""
    cache_file = _cache_file(folder, cache_dir)
    cache = _load_cache(cache_file)
    stamps = {name: _stamp(folder / name) for name in names}
    checked = {name: cache[name] for name in names if cache.get(name, [None])[:-1] == stamps[name]}
    new = [name for name in names if name not in checked]

    def verdict(name: str) -> str | None:
        try:
            read_image(folder / name, name=name)
        except BrokenImageError as error:
            return str(error).removeprefix(f"{name}: ")
        return None

    if len(new) >= ANNOUNCED_CHECK:
        print(f"checking {len(new):,} images in {folder}", file=sys.stderr)
    if new:
        try:
            with ThreadPoolExecutor() as pool:
                for name, reason in zip(new, pool.map(verdict, new), strict=True):
                    checked[name] = [*stamps[name], reason]
        finally:  # an interrupted check of a large folder goes on where it stopped
            _save_cache(cache_file, checked)
    return {name: checked[name][-1] for name in names if checked[name][-1] is not None}


def _stamp(file: Path) -> list[int]:
    """Return [bytes, modification time in ns]; zeros for a link that leads nowhere, which then fails to read."""
    try:
        stat = os.stat(file)
    except OSError:
        return [0, 0]
    return [stat.st_size, stat.st_mtime_ns]


def _cache_file(folder: Path, cache_dir: str | Path | None) -> Path:
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unclip_jax"
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(cache_dir) / f"folder-{digest}.json"


def _load_cache(file: Path) -> dict[str, list]:
    """Return {name: [bytes, mtime in ns, reason or None]}; empty where there is no cache or it cannot be used."""
    try:
        cache = json.loads(file.read_text("utf-8"))
        return cache["files"] if cache["version"] == CACHE_VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _save_cache(file: Path, files: dict[str, list]) -> None:
    try:
        with atomic_write(file) as draft:
            draft.write_text(json.dumps({"version": CACHE_VERSION, "files": files}), "utf-8")
    except OSError:
        return  # a read-only home costs the next start a check, no more
