"""What the parquet files of an embedding store say of its rows, made once into files that are read at random.

    texts.bin       of each row the JSON of [key, name, [caption, ...]], one after another in UTF-8
    ends.npy        where each of these ends
    hashes.npy      XXH3 of 64 bits of the keys, sorted, and in rows.npy the row of each
    twice.npy       rows whose key an earlier row has
    index.json      version, count, how many rows have captions, and whether one has several

They lie in a folder of the user's cache, under the sizes and times of the store's files. Parquet is compressed in
groups of thousands of rows, each of which would be unpacked whole for one of them; of these files a row is two reads,
and one of 12 million rows is found by its key in some 24 steps, with nothing of them in memory.
"""

import dataclasses
import errno
import functools
import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write, cache_folder
from unclip_jax.data.skipping import BadRecordError

VERSION = 1
MOST_TEXT = 1 << 20
"""Bytes of what is said of one row."""


@dataclasses.dataclass(frozen=True)
class RowTexts:
    """What is said of a row: its key ("" for none), where it came from, and its captions."""

    key: str
    name: str
    captions: tuple[str, ...] = ()


class StoreIndex:
    """The files above, in `folder`; picklable, and safe to read from many threads."""

    def __init__(self, folder: Path, keep: object = None):
        self.folder, self._keep = folder, keep
        try:
            said = json.loads((folder / "index.json").read_text("utf-8"))
            if said["version"] != VERSION:
                raise ValueError(f"version {said['version']}")
            self.count, self.several = int(said["count"]), bool(said["several"])
            self.captioned = int(said["captioned"])
            self.twice: frozenset[int] = frozenset(np.load(folder / "twice.npy", allow_pickle=False).tolist())
            sizes = {"ends": self.count, "hashes": self.count, "rows": self.count}
            for name, size in sizes.items():
                if getattr(self, f"_{name}").shape != (size,):
                    raise ValueError(name)
            if (folder / "texts.bin").stat().st_size != (int(self._ends[-1]) if self.count else 0):
                raise ValueError("texts.bin")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise LookupError(f"{folder} is no index: {error}") from error

    def __reduce__(self):
        return StoreIndex, (self.folder, self._keep)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return self._array("ends")

    @functools.cached_property
    def _hashes(self) -> np.ndarray:
        return self._array("hashes")

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        return self._array("rows")

    def _array(self, name: str) -> np.ndarray:
        file = self.folder / f"{name}.npy"
        # Nothing can be mapped to an empty file.
        return np.load(file, mmap_mode="r" if self.__dict__.get("count") else None, allow_pickle=False)

    def __getitem__(self, row: int) -> RowTexts:
        """Read what is said of a row; BadRecordError for what makes no sense."""
        start, end = int(self._ends[row - 1]) if row else 0, int(self._ends[row])
        if not 0 <= end - start <= MOST_TEXT:
            raise BadRecordError(f"{self.folder} is damaged; remove it, and it is made again")
        with open(self.folder / "texts.bin", "rb") as file:
            text = os.pread(file.fileno(), end - start, start)
        try:
            key, name, captions = json.loads(text)
            return RowTexts(str(key), str(name), tuple(map(str, captions)))
        except (ValueError, TypeError, RecursionError) as error:
            raise BadRecordError(f"{self.folder} is damaged; remove it, and it is made again") from error

    def row_of(self, key: str) -> int | None:
        """Return the first row with a key; None where there is none."""
        wanted = _hash(key)
        place = int(np.searchsorted(self._hashes, np.uint64(wanted)))
        while place < self.count and int(self._hashes[place]) == wanted:
            row = int(self._rows[place])
            if self[row].key == key:
                return row
            place += 1
        return None


def open_index(
    known: Sequence[object],
    rows: Callable[[], Iterable[RowTexts]],
    cache_dir: str | Path | None = None,
) -> StoreIndex:
    """Return the index that is kept for `known`, which says of what it is; or make one of `rows()`."""
    digest = hashlib.sha256(repr([VERSION, *known]).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    folder = (cache_folder() if cache_dir is None else Path(cache_dir)) / f"store-{digest}"
    try:
        return StoreIndex(folder)
    except LookupError:
        pass
    try:
        with atomic_write(folder) as draft:
            _write(draft, rows())
        return StoreIndex(folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        # A home that is read-only costs every start another reading.
        keep = tempfile.TemporaryDirectory(prefix="unclip_jax-")
        _write(Path(keep.name) / "index", rows())
        return StoreIndex(Path(keep.name) / "index", keep)


def _write(folder: Path, rows: Iterable[RowTexts]) -> None:
    folder.mkdir()
    ends, hashes, end, several, captioned = array("Q"), array("Q"), 0, False, 0
    with open(folder / "texts.bin", "wb") as file:
        for row in rows:
            text = json.dumps([row.key, row.name, row.captions], ensure_ascii=False).encode("utf-8", "surrogatepass")
            if len(text) > MOST_TEXT:
                raise UserError(f"{row.name} has texts of {len(text):,} bytes; at most {MOST_TEXT:,} are read")
            file.write(text)
            end += len(text)
            ends.append(end)
            hashes.append(_hash(row.key))
            several = several or len(row.captions) > 1
            captioned += bool(row.captions)
    unsorted = np.frombuffer(hashes, np.uint64) if hashes else np.zeros(0, np.uint64)
    order = np.argsort(unsorted, kind="stable")
    for name, values in {"ends": np.array(ends, np.uint64), "hashes": unsorted[order], "rows": order}.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
    said: dict[str, Any] = {"version": VERSION, "count": len(ends), "several": several, "captioned": captioned}
    np.save(folder / "twice.npy", np.zeros(0, np.int64), allow_pickle=False)
    (folder / "index.json").write_text(json.dumps(said), "utf-8")
    np.save(folder / "twice.npy", _twice(StoreIndex(folder), unsorted[order], order), allow_pickle=False)


def _twice(index: StoreIndex, hashes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the rows whose key, if they have one, an earlier row has."""
    later = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    found = [int(order[place]) for place in later if (key := index[int(order[place])].key)
             and index.row_of(key) != int(order[place])]  # fmt: skip
    return np.array(sorted(found), np.int64)


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))
