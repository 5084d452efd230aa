"""Parquet files of captioned images, as img2dataset and the Hub write them.

    jpg binary, caption string, key string                     img2dataset
    image struct{bytes binary, path string}, text string       the Hub

A row group is compressed as a whole, so a row by itself costs the reading of all rows beside it, a hundred and more.
That suits a stream and not a shuffle over everything, which training wants. Images are therefore unpacked once, one
after another, into a file in the user's cache folder (as the datasets library does), and read from there at random; on
a pod every host does that for itself. Captions and keys stay in memory, as Arrow has them.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.core.files import atomic_write
from unclip_jax.data.columns import MOST_IMAGE_BYTES, Columns, Rows
from unclip_jax.data.files import called, for_library, is_remote, reported
from unclip_jax.data.index_cache import index_file, load_index, save_index
from unclip_jax.data.skipping import BadRecordError

ROW = np.dtype([("shard", "i4"), ("row", "i8"), ("at", "i8"), ("size", "i8")])
VERSION = 1
BATCH = 64
"""Rows that are unpacked at once."""
ANNOUNCED = 1 << 28
"""Bytes of images from which unpacking is worth a line."""
SPARE = 1 << 30
"""Bytes of disk that are left alone."""

ParquetFile = Any
"""A `pyarrow.parquet.ParquetFile`."""
Column = Any
"""A `pyarrow.ChunkedArray`."""


class Head(NamedTuple):
    """What the end of a parquet file says of it."""

    names: list[str]
    metadata: Any

    def bytes_of(self, column: str) -> int:
        """Return the bytes that a column has when unpacked."""
        groups = (self.metadata.row_group(group) for group in range(self.metadata.num_row_groups))
        return sum(
            group.column(number).total_uncompressed_size
            for group in groups
            for number in range(group.num_columns)
            if group.column(number).path_in_schema.split(".")[0] == column
        )


class ParquetRows(Rows):
    """The rows of parquet files.

    Args:
        columns: which are read, as far as they are told.
        captions: whether rows need captions.

    Raises UserError for files that cannot be read or whose columns differ, and a disk without room for the images.
    """

    def __init__(
        self,
        shards: Sequence[str],
        columns: Columns,
        *,
        captions: bool = True,
        cache_dir: str | Path | None = None,
    ):
        self.where = called(shards)
        self._shards = tuple(shards)
        heads = [_head(shard) for shard in shards]
        self._columns = heads[0].names
        for shard, head in zip(shards, heads, strict=True):
            if missing := set(self._columns) - set(head.names):
                line = f"{shard} has no column {sorted(missing)[0]!r}, which {shards[0]} has"
                raise UserError(f"{line}; give files that are alike")
        used = columns.among(self._columns, self.where, captions=captions)
        self._image = used.image
        with reported(self.where):
            index = index_file(f"parquet-{_word(used.image)}", VERSION, shards, cache_dir)
        self._images = index.with_suffix(".images")
        kept = load_index(index, ROW) if self._images.is_file() else None
        if kept is None or len(kept.rows) != sum(head.metadata.num_rows for head in heads):
            rows = self._unpack(heads)
            save_index(index, rows, {})
        else:
            rows = kept.rows
        self._rows = rows
        small = [name for name in (used.caption, used.key) if name]
        self._table = _tables(shards, small, self.where)

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""
        return self._columns

    def __len__(self) -> int:
        return len(self._rows)

    def cells(self, index: int, names: Sequence[str]) -> Mapping[str, object]:
        found: dict[str, object] = {}
        for name in names:
            if name == self._image:
                found[name] = self._read_image(index)
            elif name in self._table:
                try:
                    found[name] = self._table[name][index].as_py()
                except UnicodeDecodeError as error:
                    raise BadRecordError(f"its {name} is not UTF-8") from error
        return found

    def place(self, index: int) -> str:
        row = self._rows[index]
        return f"{os.path.basename(self._shards[row['shard']])}, row {row['row']}"

    def scan(self, names: Sequence[str]) -> Iterator[Mapping[str, object]]:
        stored = [name for name in names if name != self._image]
        index = 0
        for shard in self._shards:
            for batch in _opened(shard).iter_batches(BATCH * 16, columns=stored):
                columns = {name: _listed(batch.column(name)) for name in stored}
                for row in range(batch.num_rows):
                    image = {self._image: self._read_image(index)} if self._image in names else {}
                    yield {name: cells[row] for name, cells in columns.items()} | image
                    index += 1

    def _read_image(self, index: int) -> bytes | None:
        row = self._rows[index]
        if not row["size"]:
            return None
        with open(self._images, "rb") as images:
            data = os.pread(images.fileno(), int(row["size"]), int(row["at"]))
        if len(data) < row["size"]:
            raise BadRecordError(f"{self._images} ends in it; remove that file")
        return data

    def _unpack(self, heads: Sequence[Head]) -> np.ndarray:
        """Write the images one after another, and return where they are."""
        total = sum(head.bytes_of(self._image) for head in heads)
        self._images.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._images.parent).free

        def check_room(needed: int) -> None:
            if needed + SPARE > free:
                line = f"{needed / 1e9:,.1f} GB of images have to be unpacked into {self._images.parent}"
                raise UserError(f"{line}, where {free / 1e9:,.1f} GB are free; make room, or set XDG_CACHE_HOME")

        check_room(total)
        if total >= ANNOUNCED:
            print(f"unpacking {total / 1e9:,.1f} GB of images into {self._images.parent}", file=sys.stderr)
        rows: list[tuple[int, int, int, int]] = []
        at = 0
        try:
            with atomic_write(self._images) as draft, open(draft, "wb") as out:
                for shard, name in enumerate(self._shards):
                    row = 0
                    for image in _images(name, self._image):
                        taken = image if image is not None and len(image) <= MOST_IMAGE_BYTES else b""
                        # A file counts an image once that its dictionary gives to many rows, and may say anything.
                        check_room(at + len(taken))
                        out.write(taken)
                        rows.append((shard, row, at, len(taken)))
                        at, row = at + len(taken), row + 1
        except OSError as error:
            line = f"{self._images} cannot be written ({error.strerror})"
            raise UserError(f"{line}; make room, or set XDG_CACHE_HOME") from error
        return np.array(rows, ROW) if rows else np.zeros(0, ROW)


def _listed(column: Column) -> list[object]:
    """Return a column's cells, None for texts that are none."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        cells: list[object] = []
        for each in column:
            try:
                cells.append(each.as_py())
            except UnicodeDecodeError:
                cells.append(None)
        return cells


def _opened(shard: str) -> ParquetFile:
    with needs("data"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        with reported(shard) if is_remote(shard) else contextlib.nullcontext():
            return pq.ParquetFile(for_library(shard))
    except (pa.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(f"{shard} is no parquet file that can be read ({why}); copy it again") from error


def _head(shard: str) -> Head:
    file = _opened(shard)
    try:
        return Head(list(file.schema_arrow.names), file.metadata)
    except ValueError as error:  # a name that is no text
        raise UserError(f"{shard} is no parquet file that can be read ({error}); copy it again") from error


def _images(shard: str, column: str) -> Iterator[bytes | None]:
    """Yield the cells of the column of images as bytes."""
    import pyarrow as pa

    try:
        for batch in _opened(shard).iter_batches(BATCH, columns=[column]):
            for cell in batch.column(0).to_pylist():
                found = cell.get("bytes") if isinstance(cell, dict) else cell
                yield found if isinstance(found, bytes) else None
    except (pa.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(f"{shard} is damaged ({why}); copy it again") from error


def _tables(shards: Sequence[str], names: Sequence[str], where: str) -> dict[str, Column]:
    """Read small columns whole."""
    import pyarrow as pa

    try:
        tables = [_opened(shard).read(list(names)) for shard in shards] if names else []
        return {name: pa.chunked_array([part for each in tables for part in each[name].chunks]) for name in names}
    except (pa.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(f"{where} is damaged, or its columns are of several types ({why}); copy it again") from error


def _word(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)[:40]
