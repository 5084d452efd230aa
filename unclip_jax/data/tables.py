"""Tables that name images and their captions, metadata.jsonl and metadata.csv, row by row and strictly.

    file_name              relative to the table
    text, or caption       a string, or in JSON a list of them: alternatives

Other columns are left alone. A row that does not fit is returned with what is wrong with it, never mended and never
taken in part, and the rows after it are read as if it were not there. In CSV that means a quote that is left open,
too: it ends where a line inside the cell reads like a row of its own.
"""

import csv
import dataclasses
import io
import json
import reprlib
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from unclip_jax.core.reading import check_lists
from unclip_jax.core.typing import Json, JsonDict
from unclip_jax.core.unicode import fault
from unclip_jax.images.files import IMAGE_SUFFIXES

TABLES = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "caption")
COLUMNS = "file_name and text (or caption)"
MOST_BYTES, MOST_LINE = 1 << 27, 1 << 20
"""Of a table that is read, and characters of a line of it in JSON."""
MOST_FAULTS = 20_000
"""Rows of a table that are of no use, before the rest is left alone."""
MOST_CHARACTERS = 1 << 14
"""Longest caption that is taken. What a tokenizer learns of one long word takes it the square of the length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        line: in the file, from 1.
        file_name: as it is written; None where it cannot be told.
        captions: alternatives.
        fault: what is wrong, as in "has no text"; None for a row that can be used.
        cells: all of the row by column.
    """

    line: int
    file_name: str | None = None
    captions: tuple[str, ...] = ()
    fault: str | None = None
    cells: JsonDict = dataclasses.field(default_factory=dict, repr=False)


class UnreadableError(Exception):
    """A file cannot be read; says why, as in "cannot be read (Permission denied)"."""


def read_text(file: Path, most: int | None = None) -> str:
    """Read a file of text. Bytes that are not UTF-8 spoil no more than what they are in, where they become no text.

    Raises UnreadableError for what is no file, has more than `most` bytes, or cannot be read.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("is not a file")
        if most is not None and status.st_size > most:
            raise UnreadableError(f"has {status.st_size:,} bytes, more than the limit of {most:,}")
        return file.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror or error})") from error


def read_table(file: Path) -> Iterator[Row]:
    """Yield the rows of a .jsonl or .csv file; of a file that cannot be read one, with the reason."""
    try:
        lines = list(io.StringIO(read_text(file, MOST_BYTES), newline=""))
    except UnreadableError as error:
        yield Row(line=1, fault=str(error))
        return
    faults = 0
    for row in _csv_rows(lines) if file.suffix == ".csv" else _json_rows(lines):
        faults += row.fault is not None
        if faults > MOST_FAULTS:
            yield Row(line=row.line, fault=f"and all after it are not read: over {MOST_FAULTS:,} rows are of no use")
            return
        yield row


def _json_rows(lines: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(line) > MOST_LINE:
            yield Row(line=number, fault=f"has {len(line):,} characters, more than the limit of {MOST_LINE:,}")
            continue
        try:
            check_lists(line)
            cells = json.loads(line, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            yield Row(line=number, fault=f"is not JSON ({error})")
            continue
        if isinstance(cells, dict):
            yield _row(number, cells)
        else:
            yield Row(line=number, fault="is not a JSON object; write one a line")


def _distinct(pairs: list[tuple[str, Json]]) -> JsonDict:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise ValueError("it has a key twice")
    return cells


def _csv_rows(lines: list[str]) -> Iterator[Row]:
    header: list[str] = []
    for number, cells in _csv_cells(lines, header):
        if isinstance(cells, str):
            yield Row(line=number, fault=cells)
            if not header:
                return
        elif not header:
            counts = [cells.count(name) for name in ("file_name", *CAPTION_COLUMNS)]
            if max(counts) > 1 or not counts[0] or not any(counts[1:]):
                found = reprlib.repr(",".join(cells))
                yield Row(line=number, fault=f"must name the columns {COLUMNS}, each once, not {found}")
                return
            header += cells
        elif len(cells) != len(header):
            name = next(iter(cells[header.index("file_name") :]), None)
            found = f"has {len(cells)} cells where the header has {len(header)}; put text with commas in quotes"
            yield Row(line=number, file_name=name, fault=found)
        else:
            yield _row(number, {name: cell or None for name, cell in zip(header, cells, strict=True)})


def _csv_cells(lines: list[str], header: list[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the line that each record starts at, and its cells, or what is wrong; the caller fills the header."""
    record = _Record(lines, header)
    while record.end < len(lines):
        record.start = record.end
        if not lines[record.start].strip():
            record.end += 1
            continue
        try:
            cells = next(csv.reader(record, strict=True))
            text = "".join(lines[record.start : record.end])
            if any('"' in cell and '"{}"'.format(cell.replace('"', '""')) not in text for cell in cells):
                raise csv.Error("a cell has a quote and none around it")
        except csv.Error as error:
            yield record.start + 1, f"is not CSV ({error}); put quotes around text with quotes, and write those twice"
            record.end = record.start + 1
        else:
            yield record.start + 1, cells


class _Record(Iterator[str]):
    """The lines of one record, from `start` to before `end`: as many as `csv` asks for, but none of another record."""

    def __init__(self, lines: list[str], header: list[str]):
        self._lines, self._header = lines, header
        self._rows = 0
        self.start = self.end = 0

    def __next__(self) -> str:
        if self.end == len(self._lines):
            raise StopIteration
        if self.end > self.start:
            if self.end == self.start + 1:
                self._rows = self._reads_like_a_row(self.start)
            self._rows += self._reads_like_a_row(self.end)
            # A cell of several lines leaves one that does: the first, or the last where the file's name comes after it.
            if self._rows > 1:
                raise csv.Error("a quote is left open")
        self.end += 1
        return self._lines[self.end - 1]

    def _reads_like_a_row(self, number: int) -> bool:
        """Return whether a line would be a row if its quotes were not there."""
        line = self._lines[number]
        for cells in (next(csv.reader([line])), line.replace('"', "").split(",")):
            if len(cells) == len(self._header) > 0:
                name = cells[self._header.index("file_name")]
                if name.strip().lower().endswith(IMAGE_SUFFIXES):
                    return True
        return False


def _row(line: int, cells: JsonDict) -> Row:
    """Return a row of cells by column, checked; None is what JSON's null and an empty cell are."""
    file_name = cells.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        return Row(line=line, fault="has a file_name that is not a string" if file_name else "has no file_name")
    column = next((name for name in CAPTION_COLUMNS if cells.get(name) is not None), None)
    if column is None:
        return Row(line=line, file_name=file_name, fault="has no text (or caption)")
    given = cells[column]
    several = given if isinstance(given, list) else [given]
    captions = tuple(caption for caption in several if isinstance(caption, str))
    if len(captions) < len(several):
        found = f"has {reprlib.repr(given)} as its {column}, not a string or a list of them"
        return Row(line=line, file_name=file_name, fault=found)
    return Row(line=line, file_name=file_name, captions=captions, fault=caption_fault(column, captions), cells=cells)


def caption_fault(name: str, captions: Sequence[str]) -> str | None:
    """Say what keeps captions from being used, as in "has a text that is not UTF-8"; None where nothing does."""
    if not any(caption.strip() for caption in captions):
        return f"has an empty {name}"
    for caption in captions:
        if (why := fault(caption)) is not None:
            return f"has a {name} that {why}"
        if len(caption) > MOST_CHARACTERS:
            return f"has a {name} of {len(caption):,} characters, more than the limit of {MOST_CHARACTERS:,}"
        if "\0" in caption:
            return f"has a {name} with a null character; write the file in UTF-8"
    return None
