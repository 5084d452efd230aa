"""The parquet files of embedding stores: what they say of each row.

    key, or what else names a row (`KEYS`)      caption, or what else it is called (`CAPTIONS`)
    other_captions                              further captions, in a list: ours alone

They are read a few thousand rows at a time, once: see `unclip_jax.data.store_index`.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.core.unicode import printable
from unclip_jax.data.store_index import RowTexts
from unclip_jax.images.files import IMAGE_SUFFIXES

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SHOWN = 12
"""Columns that a message names."""
KEYS = ("key", "__key__", "id", "image_path")
"""Columns that name a row; the first of them that is there does. Of `image_path` the suffix of an image is left out."""
CAPTIONS, OTHERS = ("caption", "text", "TEXT"), "other_captions"


@contextlib.contextmanager
def _open_table(path: Path) -> Iterator["pq.ParquetFile"]:
    """Open a parquet file; UserError where it, or what is read of it inside, is damaged."""
    with needs("data"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        with pq.ParquetFile(path, thrift_string_size_limit=1 << 28, thrift_container_size_limit=1 << 24) as file:
            yield file
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{path} is no parquet that can be read ({reason}); copy it again") from error


def table_columns(path: Path) -> list[str]:
    """Return the columns of a parquet file."""
    with _open_table(path) as file:
        return list(file.schema_arrow.names)


def read_cells(path: Path, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield the cells of these columns of every row of a parquet file; UserError where it cannot be read."""
    with _open_table(path) as file:
        for batch in file.iter_batches(4096, columns=list(columns)):
            cells = {name: batch.column(name).to_pylist() for name in columns}
            for row in range(batch.num_rows):
                yield {name: column[row] for name, column in cells.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is read of the tables.

    Attributes:
        key, caption: the columns; "" guesses them by their names.
        captions: whether captions are read.
        root: the folder that `image_path` begins with, which is no part of a key.
    """

    key: str = ""
    caption: str = ""
    captions: bool = True
    root: str = ""

    def columns(self, path: Path, names: Sequence[str]) -> tuple[str, str]:
        """Return the columns of the key and of the caption, "" for none; UserError where they cannot be told."""
        shown = ", ".join(printable(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        for option, name in (("key", self.key), ("caption", self.caption)):
            if name and name not in names:
                raise UserError(f"{path} has no column {name!r}; set --data.{option}-column to one of {shown}")
        captions = [name for name in CAPTIONS if name in names]
        if self.captions and not self.caption and len(captions) > 1:
            raise UserError(f"{path} has {' and '.join(captions)}; say with --data.caption-column which is the caption")
        caption = self.caption or next(iter(captions), "")
        key = self.key or next((name for name in KEYS if name in names), "")
        return key, caption if self.captions else ""


def read_table(path: Path, wanted: Wanted) -> Iterator[RowTexts]:
    """Yield the keys and captions of every row of a parquet file; UserError where it cannot be read."""
    names = table_columns(path)
    key, caption = wanted.columns(path, names)
    others = OTHERS if caption and OTHERS in names else ""
    columns = [name for name in (key, caption, others) if name]
    if not columns:
        line = "has no column with a name for the key or the caption"
        raise UserError(f"{path} {line}; set --data.key-column or --data.caption-column to one of {', '.join(names)}")
    for number, cells in enumerate(read_cells(path, columns)):
        yield _row(path, wanted.root, number, key, caption, cells)


def _row(path: Path, root: str, number: int, key: str, caption: str, cells: Mapping[str, object]) -> RowTexts:
    name, word = f"{path.name}, row {number}", "" if cells.get(key) is None else str(cells[key])
    if key == "image_path":
        word = word.removeprefix(f"{root.rstrip('/')}/") if root else word
        word = word.rpartition(".")[0] if word.lower().endswith(IMAGE_SUFFIXES) else word
    others = cells.get(OTHERS)
    given = (cells.get(caption), *(others if isinstance(others, list) else ()))
    lines = dict.fromkeys(" ".join(str(each).split()) for each in given if each is not None)
    return RowTexts(word, f"{name} ({word})" if word else name, tuple(line for line in lines if line))
