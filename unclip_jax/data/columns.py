"""Sources of rows with named cells: parquet, TFRecord, ArrayRecord, TFDS, datasets.

    image      an encoded image as bytes, or {"bytes": ...} as the Hub has it
    caption    a text, or a list of texts: alternatives
    key        a text or a number; where there is none, the place of the row

Which columns these are is told, or guessed from their names where that leaves no doubt.
"""

import abc
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.core.unicode import printable
from unclip_jax.data.filters import MEASURED, measures
from unclip_jax.data.records import Record
from unclip_jax.data.skipping import BadRecordError, SkippingSource, check_limits
from unclip_jax.data.tables import caption_fault
from unclip_jax.images.transforms import image_size, read_image

MOST_IMAGE_BYTES = 1 << 28
MOST_CAPTIONS = 1000
"""Captions of one image."""
SHOWN = 12
"""Columns that a message names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns that are read; "" for one to be guessed, or that is not there."""

    image: str = ""
    caption: str = ""
    key: str = ""

    GUESSES: ClassVar = {
        "image": ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "image/encoded", "img"),
        "caption": ("caption", "captions", "text", "txt", "captions/text", "image/caption", "sentences", "prompt"),
        "key": ("key", "__key__", "image/id", "image_id", "id", "name"),
    }

    def among(self, names: Sequence[str], where: str, *, captions: bool) -> "Columns":
        """Return the columns of a source that has these.

        Raises UserError for a column that is not there, or cannot be guessed.
        """
        image = self._find("image", self.image, names, where, needed=True)
        caption = self._find("caption", self.caption, names, where, needed=True) if captions else ""
        return Columns(image=image, caption=caption, key=self._find("key", self.key, names, where, needed=False))

    def _find(self, what: str, given: str, names: Sequence[str], where: str, *, needed: bool) -> str:
        shown = ", ".join(printable(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        option = f"--data.{what}-column"
        if given:
            if given not in names:
                raise UserError(f"{where} has no column {given!r}; set {option} to one of {shown}")
            return given
        guesses = [name for name in self.GUESSES[what] if name in names]
        if len(guesses) == 1 or (guesses and not needed):
            return guesses[0]
        if not needed:
            return ""
        if guesses:
            raise UserError(f"{where} has {' and '.join(guesses)}; say with {option} which is the {what}")
        line = f"{where} has no column with a name for the {what}"
        raise UserError(f"{line}; set {option} to one of {shown}")


class Rows(abc.ABC):
    """Rows with named cells, read at random. Picklable, and safe to read from many threads."""

    where: str
    """What the rows are called in messages."""

    @property
    @abc.abstractmethod
    def columns(self) -> Sequence[str]:
        """The names of the columns."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def cells(self, index: int, names: Sequence[str]) -> Mapping[str, object]:
        """Return the cells of a row; raise BadRecordError where it cannot be read."""

    @abc.abstractmethod
    def place(self, index: int) -> str:
        """Say where a row is."""

    def scan(self, names: Sequence[str]) -> Iterator[Mapping[str, object]]:
        """Yield cells of all rows, in order; nothing of a row that cannot be read."""
        for index in range(len(self)):
            try:
                yield self.cells(index, names)
            except BadRecordError:
                yield {}


class RowSource(SkippingSource):
    """The captioned images of `Rows`.

    Args:
        columns: which of the rows' columns are read.
        bad: what is known to be bad from the start, by its place.
        max_bad_share: largest share of records that may be unusable.
        min_side: images with fewer pixels along their shorter side are left out.
        captions: False takes images alone; every caption is then "".

    Raises UserError where there is nothing to read, or the columns cannot be told.
    """

    def __init__(
        self,
        rows: Rows,
        columns: Columns,
        *,
        bad: Mapping[str, str] | None = None,
        max_bad_share: float = 0.01,
        min_side: int = 8,
        captions: bool = True,
    ):
        check_limits(max_bad_share, min_side)
        bad = dict(bad or {})
        if not len(rows) and not bad:
            raise UserError(f"{rows.where} holds no records; give one that does")
        super().__init__(rows.where, len(rows), bad, max_bad_share)
        if bad:
            self.check()
            print(f"{rows.where}: {len(bad):,} of {self._total:,} records left out: {self.named(3)}", file=sys.stderr)
        self._rows, self._min_side = rows, min_side
        self._columns = columns.among(rows.columns, rows.where, captions=captions)

    def name(self, index: int) -> str:
        return self._rows.place(index)

    def key(self, index: int) -> str:
        if self._columns.key:
            try:
                return _key(self._rows.cells(index, [self._columns.key]).get(self._columns.key))
            except BadRecordError:
                pass  # it is found when the whole record is read
        return self._rows.place(index)

    def read(self, index: int) -> Record:
        used = self._columns
        cells = self._rows.cells(index, [name for name in dataclasses.astuple(used) if name])
        name = self.name(index)
        image = read_image(_encoded(cells.get(used.image)), name=name)
        if min(image.size) < self._min_side:
            side = f"its shorter side has {min(image.size)} px"
            raise BadRecordError(f"{side}, fewer than min_side {self._min_side}")
        captions = captions_of(cells.get(used.caption), used.caption) if used.caption else ("",)
        key = _key(cells.get(used.key)) if used.key else name
        return Record(image=np.array(image), captions=captions, name=name, key=key)

    def describe(self, names: frozenset[str]) -> Iterator[Mapping[str, object]]:
        """Yield the columns `names` of every record; see `filters.DescribedSource`."""
        stored = [name for name in names - MEASURED if name in self._rows.columns]
        measured = [self._columns.image] if names & MEASURED else []
        for cells in self._rows.scan([*stored, *measured]):
            found = {name: _plain(cells[name]) for name in stored if name in cells}
            yield found | (measures(_size(cells.get(self._columns.image)), names) if measured else {})

    def columns(self) -> Sequence[str]:
        """Return the names of the columns."""
        return self._rows.columns


def captions_of(cell: object, column: str) -> tuple[str, ...]:
    """Return what a cell says, alternatives; raise BadRecordError where that is nothing."""
    cell = _plain(cell)
    if isinstance(cell, str) and cell.startswith("["):
        try:  # lists in columns of text
            listed = json.loads(cell)
        except (ValueError, RecursionError):
            listed = None
        cell = listed if isinstance(listed, list) and all(isinstance(each, str) for each in listed) else cell
    several = cell if isinstance(cell, list) else [cell]
    if len(several) > MOST_CAPTIONS:
        raise BadRecordError(f"has {len(several):,} captions, more than the limit of {MOST_CAPTIONS:,}")
    lines = [" ".join(text.split()) for text in several if isinstance(text, str)]
    if len(lines) < len(several):
        raise BadRecordError(f"its {column} is no text and no list of texts")
    if (fault := caption_fault(column, lines)) is not None:
        raise BadRecordError(fault)
    return tuple(dict.fromkeys(line for line in lines if line))


def _plain(cell: object) -> object:
    """Return a cell as Python has it: bytes as text, arrays as lists, an array or list of one as that."""
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "surrogateescape")
    if isinstance(cell, (np.ndarray, np.generic)):
        return _plain(cell.tolist())
    if isinstance(cell, (list, tuple)):
        return _plain(cell[0]) if len(cell) == 1 else [_plain(each) for each in cell]
    return cell


def _encoded(cell: object) -> bytes:
    """Return the bytes of an image; raise BadRecordError where there are none."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes")
    if isinstance(cell, (list, np.ndarray)) and len(cell) == 1:
        cell = cell[0]
    if not isinstance(cell, bytes) or not cell:
        raise BadRecordError("no image")
    if len(cell) > MOST_IMAGE_BYTES:
        raise BadRecordError(f"has an image of {len(cell):,} bytes, more than the limit of {MOST_IMAGE_BYTES:,}")
    return cell


def _size(cell: object) -> tuple[int, int] | None:
    try:
        return image_size(_encoded(cell))
    except BadRecordError:
        return None


def _key(cell: object) -> str:
    cell = _plain(cell)
    if not isinstance(cell, (str, int)) or cell == "":
        raise BadRecordError("no key")
    return str(cell)
