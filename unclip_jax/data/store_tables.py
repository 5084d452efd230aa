"""The parquet files of embedding stores: what they say of each row.

    key, or what else names a row (`KEYS`)      caption, or what else it is called (`CAPTIONS`)
    other_captions                              further captions, in a list: ours alone

They are read a few thousand rows at a time, once: see `unclip_jax.data.store_index`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.data.store_index import RowTexts
from unclip_jax.images.files import IMAGE_SUFFIXES

if TYPE_CHECKING:
    import pyarrow.parquet as pq

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


def read_table(path: Path, root: str = "") -> Iterator[RowTexts]:
    """Yield the keys and captions of every row of a parquet file; UserError where it cannot be read.

    What `image_path` begins with, the folder `root`, is no part of a key.
    """
    columns = table_columns(path)
    key = next((name for name in KEYS if name in columns), None)
    captions = [name for name in CAPTIONS if name in columns]
    if len(captions) > 1:
        raise UserError(f"{path} has the columns {', '.join(captions)}, each of which may be the caption")
    wanted = [name for name in (key, *captions, OTHERS) if name is not None and name in columns]
    for number, cells in enumerate(read_cells(path, wanted)):
        yield _row(path, root, number, key, captions[0] if captions else "", cells)


def _row(path: Path, root: str, number: int, key: str | None, caption: str, cells: Mapping[str, object]) -> RowTexts:
    name, word = f"{path.name}, row {number}", "" if key is None or cells[key] is None else str(cells[key])
    if key == "image_path":
        word = word.removeprefix(f"{root.rstrip('/')}/") if root else word
        word = word.rpartition(".")[0] if word.lower().endswith(IMAGE_SUFFIXES) else word
    others = cells.get(OTHERS)
    given = (cells.get(caption), *(others if isinstance(others, list) else ()))
    lines = dict.fromkeys(" ".join(str(each).split()) for each in given if each is not None)
    return RowTexts(word, f"{name} ({word})" if word else name, tuple(line for line in lines if line))
