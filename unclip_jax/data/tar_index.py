"""The members of tar files by position, so that their records are read at random like files of a folder.

    header of 512 bytes   name [0:100], size [124:136] in octal or base 256, checksum [148:156], kind [156],
                          prefix [345:500]
    data                  from the next block on, filled up to a multiple of 512

of ustar, GNU ("L" before a long name) and pax ("x" before path and size). Members of one key that follow each other are
one record: `dir/0001.jpg`, `dir/0001.txt` and `dir/0001.json` have the key `dir/0001`.

Reading the headers of a large collection takes minutes, so the result is kept, in the user's cache folder, under the
files' sizes and times.
"""

import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unclip_jax.data.files import OpenFile, open_file, stamp
from unclip_jax.data.index_cache import index_file, load_index, save_index
from unclip_jax.images.files import IMAGE_SUFFIXES

BLOCK = 512
MOST_EXTENDED = 1 << 20
"""Bytes of a long name, or of pax records, that are read."""
VERSION = 2
CAPTIONS = ("", ".txt", ".json")
"""Suffixes of captions by their number in an index, 0 for none."""
PARTS = ("image_at", "image_bytes", "caption_at", "caption_bytes", "json_at", "json_bytes")
ROW = np.dtype(
    {
        "names": ["shard", "key_end", "caption", *PARTS],
        "formats": ["i4", "i8", "i1", *["i8"] * len(PARTS)],
    }
)
"""Of one record: the number of its file, where its key ends among all keys, the number of the caption's suffix in
`CAPTIONS`, and where its image, its caption and its .json are; 0 bytes where there is none."""
PARALLEL = 1 << 28
"""Bytes of shards from which reading their headers is worth several processes."""


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes are."""

    name: str
    at: int
    size: int


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The records of some tar files, in the order in which they lie there.

    Attributes:
        shards: the files.
        rows: where the parts of each record are, of type `ROW`.
        keys: of all records, one after another in UTF-8; that of record i ends at `rows[i]["key_end"]`.
        faults: what is no record, by its place, with the reason.
    """

    shards: tuple[str, ...]
    rows: np.ndarray
    keys: bytes
    faults: dict[str, str]

    def key(self, index: int) -> str:
        """Return the key of a record."""
        start = self.rows["key_end"][index - 1] if index else 0
        return self.keys[start : self.rows["key_end"][index]].decode("utf-8", "surrogateescape")


def read_index(shards: Sequence[str], cache_dir: str | Path | None = None) -> TarIndex:
    """Return the index of tar files: the one that is kept, or a new one."""
    file = index_file("tars", VERSION, shards, cache_dir)
    if (kept := load_index(file, ROW, ["keys"])) is not None:
        index = TarIndex(tuple(shards), kept.rows, kept.texts["keys"], kept.faults)
        if not len(index.rows) or index.rows["key_end"][-1] == len(index.keys):
            return index
    total = sum(int(str(stamp(shard)[0])) for shard in shards)
    if total >= PARALLEL:
        print(f"reading the headers of {len(shards):,} tar files of {total / 1e9:,.1f} GB", file=sys.stderr)
    if total >= PARALLEL and len(shards) > 1:
        # Not forked: threads of JAX or Grain may hold locks.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(records_of, shards))
    else:
        found = [records_of(shard) for shard in shards]
    index = _joined(shards, found)
    save_index(file, index.rows, index.faults, {"keys": index.keys})
    return index


def records_of(shard: str) -> tuple[np.ndarray, list[str], dict[str, str]]:
    """Return the records of one tar file as rows of `ROW`, their keys, and what is no record with the reason."""
    rows: list[tuple[int, ...]] = []
    keys: list[str] = []
    faults: dict[str, str] = {}
    seen: set[str] = set()
    name = os.path.basename(shard)
    key, parts = "", dict[str, Member]()

    def finish() -> None:
        if not parts:
            return
        images = [member for suffix, member in parts.items() if suffix.endswith(IMAGE_SUFFIXES)]
        kind = next((number for number, suffix in enumerate(CAPTIONS) if number and suffix in parts), 0)
        caption, cells = (parts.get(suffix, Member("", 0, 0)) for suffix in (CAPTIONS[kind], ".json"))
        if len(images) == 1 and key not in seen:
            places = (number for member in (images[0], caption, cells) for number in (member.at, member.size))
            rows.append((kind, *places))
            keys.append(key)
        elif images or kind:
            why = "its key is there twice" if len(images) == 1 else "several images" if images else "no image"
            faults[f"{name}/{key}"] = why
        seen.add(key)

    with open_file(shard) as file:
        for member in members(file, name, faults):
            folder, slash, base = member.name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            if not stem or not dot:
                continue
            if (this := f"{folder}{slash}{stem}") != key:
                finish()
                key, parts = this, {}
            parts[f".{suffix.lower()}"] = member
        finish()
    table = np.zeros(len(rows), ROW)
    if rows:
        for column, values in zip(("caption", *PARTS), zip(*rows, strict=True), strict=True):
            table[column] = values
    return table, keys, faults


def members(file: OpenFile, name: str, faults: dict[str, str]) -> Iterator[Member]:
    """Yield the files in a tar. A damaged header, and a member that the file ends in, go to `faults`; what lies behind
    a damaged header is found by the next whole one."""
    size, at = file.size, 0
    path, length, lost = None, None, False
    while at + BLOCK <= size:
        header = file.read_at(at, BLOCK)
        if not any(header):
            at += BLOCK
            continue
        own = _length(header)
        if own is None:
            if not lost:
                faults[f"{name}, byte {at}"] = "is no tar header; the file is damaged here"
            lost, at = True, at + BLOCK
            continue
        lost, kind, data = False, header[156:157], at + BLOCK
        own = own if length is None else length
        at = data + -(-own // BLOCK) * BLOCK
        if data + own > size:
            faults[f"{name}, byte {data}"] = "the file ends in this member; copy it again"
            return
        if kind in b"xL" and own <= MOST_EXTENDED:
            text = file.read_at(data, own)
            if kind == b"L":
                path = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                records = _pax(text)
                path, length = records.get("path", path), _decimal(records.get("size"))
            continue
        if kind in b"0\0":
            yield Member(path if path is not None else _name(header), data, own)
        path, length = None, None


def _length(header: bytes) -> int | None:
    """Return the size that a header states; None where its checksum says that it is none."""
    try:
        stated = int(header[148:156].split(b"\0")[0].strip() or b"0", 8)
        if stated != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
        if header[124] & 0x80:
            return int.from_bytes(header[125:136], "big")
        size = int(header[124:136].split(b"\0")[0].strip() or b"0", 8)
        return size if size >= 0 else None
    except ValueError:
        return None


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0")[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _pax(text: bytes) -> dict[str, str]:
    """Return records of "LENGTH KEY=VALUE\\n"; those before the first that is damaged."""
    records = {}
    while text:
        length = _decimal(text[:20].split(b" ")[0].decode("ascii", "replace"))
        if not length or length > len(text):
            break
        key, _, value = text[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        text = text[length:]
    return records


def _decimal(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else None


def _joined(shards: Sequence[str], found: Sequence[tuple[np.ndarray, list[str], dict[str, str]]]) -> TarIndex:
    for number, (rows, _, _) in enumerate(found):
        rows["shard"] = number
    encoded = [key.encode("utf-8", "surrogateescape") for _, keys, _ in found for key in keys]
    rows = np.concatenate([rows for rows, _, _ in found])
    rows["key_end"] = np.cumsum([len(key) for key in encoded])
    return TarIndex(
        tuple(shards), rows, b"".join(encoded), {place: why for *_, each in found for place, why in each.items()}
    )
