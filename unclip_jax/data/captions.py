"""The captions of a folder's images, and what keeps an image from having one.

    cat.txt beside cat.jpg         each line that is not empty is a caption
    metadata.jsonl, metadata.csv   see `unclip_jax.data.tables`; an image may have several rows

Whatever is found for one image are alternatives, each once, lines of its own file first. What cannot be used is named,
row by row, and nothing here stops a run: whether it is too much the source decides.
"""

import dataclasses
import json
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from unclip_jax.core.reading import check_lists
from unclip_jax.core.typing import JsonDict
from unclip_jax.data.tables import TABLES, UnreadableError, caption_fault, read_table, read_text

MOST_BYTES = 1 << 20
"""Largest caption file that is read."""
NO_CAPTION = "no caption"


@dataclasses.dataclass(frozen=True)
class Captions:
    """What was found.

    Attributes:
        of: alternatives by the name of the image.
        bad: by the name of an image, or the place of a row, what is wrong.
        counted_twice: entries of `bad` that are a row without a name and the image that it may have been for.
    """

    of: dict[str, tuple[str, ...]]
    bad: dict[str, str]
    counted_twice: int


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a caption file or a row of a table says."""

    place: str
    image: str | None
    captions: Sequence[str] = ()
    fault: str | None = None
    cells: JsonDict = dataclasses.field(default_factory=dict)


def find_captions(folder: Path, images: Sequence[str], names: Sequence[str]) -> Captions:
    """Collect captions by image; `names` are of all files in the folder, the images among them, relative to it."""
    # macOS hands out decomposed names for files whose metadata was written composed.
    known = {_composed(name): name for name in images}
    captions: dict[str, dict[str, None]] = {name: {} for name in images}
    faults: list[_Found] = []
    bad: dict[str, str] = {}
    for each in (*_beside(folder, images, set(names)), *_in_tables(folder, names)):
        name = None if each.image is None else known.get(_composed(each.image))
        if each.fault is not None:
            faults.append(dataclasses.replace(each, image=name))
        elif name is not None:
            captions[name] |= dict.fromkeys(line for line in map(_one_line, each.captions) if line)
        else:
            there = os.path.lexists(folder / str(each.image))
            bad[str(each.image)] = f"named in {each.place}, but {'no image that is read' if there else 'missing'}"
    unnamed = sum(each.image is None for each in faults)
    for each in faults:
        # A row that spoils its image, and no more, is one loss.
        if each.image is None or captions[each.image] or each.image in bad:
            bad[each.place] = str(each.fault)
        else:
            bad[each.image] = f"{each.place} {each.fault}"
    without = [name for name in images if not captions[name] and name not in bad]
    bad |= dict.fromkeys(without, NO_CAPTION)
    found = {name: tuple(alternatives) for name, alternatives in captions.items() if alternatives}
    return Captions(found, bad, min(unnamed, len(without)))


def find_columns(folder: Path, images: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, JsonDict]]:
    """Yield images with what else is said of them: the rows of the tables, then the files of JSON beside the images.
    Rows that are of no use are passed over; `find_captions` has said so."""
    known = {_composed(name): name for name in images}
    for each in _in_tables(folder, names):
        if each.image is not None and each.fault is None and (image := known.get(_composed(each.image))) is not None:
            yield image, each.cells
    files = set(names)
    for name in images:
        place = posixpath.splitext(name)[0] + ".json"
        if place in files:
            cells = cells_of(folder / place)
            if cells:
                yield name, cells


def cells_of(source: Path | bytes) -> JsonDict:
    """Return an object in JSON, a file or its bytes; nothing where it is none."""
    try:
        text = read_text(source, MOST_BYTES) if isinstance(source, Path) else source.decode("utf-8-sig", "replace")
        check_lists(text)
        cells = json.loads(text)
    except (UnreadableError, ValueError, RecursionError):
        return {}
    return cells if isinstance(cells, dict) else {}


def _beside(folder: Path, images: Sequence[str], files: set[str]) -> Iterator[_Found]:
    """Yield what the caption files say."""
    for name in images:
        place = posixpath.splitext(name)[0] + ".txt"
        if place not in files:
            continue
        try:
            lines = re.split(r"\r\n?|\n", read_text(folder / place, MOST_BYTES))
        except UnreadableError as error:
            yield _Found(place, name, fault=str(error))
        else:
            yield _Found(place, name, lines, caption_fault("caption", lines))


def _in_tables(folder: Path, names: Sequence[str]) -> Iterator[_Found]:
    """Yield what the rows of the tables say, each with the name of its image relative to the folder."""
    roots = {folder.as_posix(), Path(os.path.realpath(folder)).as_posix()}
    for table in (name for name in names if posixpath.basename(name) in TABLES):
        for row in read_table(folder / table):
            place, image, fault = f"{table}, line {row.line}", None, row.fault
            if row.file_name is not None:
                path = posixpath.join(folder.as_posix(), posixpath.dirname(table), row.file_name.replace("\\", "/"))
                path = posixpath.normpath(path)
                root = next((root for root in roots if path.startswith(f"{root}/")), None)
                if root is not None:
                    image = path.removeprefix(f"{root}/")
                else:
                    fault = fault or f"names {row.file_name!r}, which is not inside {folder}"
            yield _Found(place, image, row.captions, fault, row.cells)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _one_line(text: str) -> str:
    return " ".join(text.split())
