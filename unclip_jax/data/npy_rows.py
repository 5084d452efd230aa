"""Rows of matrices in .npy files, read one by one.

    magic, version, length of the header, header: {"descr": "<f2", "fortran_order": False, "shape": (n, d)}
    n d numbers, row by row

Rows are read where they lie, not mapped: a file that is cut short while it is mapped ends the process, and a read is an
error like any other.
"""

import dataclasses
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from unclip_jax.core.errors import UserError
from unclip_jax.core.reading import check_regular

MOST_HEADER = 10_000
"""Bytes of a header that are parsed."""
MOST_WIDTH = 65_536
"""Numbers of a row."""
DTYPES = {np.dtype("<f2"): "float16", np.dtype("<f4"): "float32"}


@dataclasses.dataclass(frozen=True)
class NpyFile:
    """A matrix on disk, [rows width], that begins at byte `at`."""

    path: Path
    rows: int
    width: int
    dtype: np.dtype
    at: int

    @classmethod
    def open(cls, path: Path) -> "NpyFile":
        """Read the header and hold it against the file's size; UserError for what is no such matrix."""
        try:
            check_regular(path)
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    shape, by_column, dtype = _header(file)
                except Exception as error:  # numpy lets Python parse the header, which raises almost anything
                    raise ValueError("it has no header of an array") from error
                at = file.tell()
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing; copy the embeddings again") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is no .npy that can be read ({error}); copy it again") from error
        if dtype not in DTYPES or len(shape) != 2 or by_column or not 0 < shape[1] <= MOST_WIDTH or shape[0] < 0:
            found = f"{str(dtype)[:20]} of shape {str(shape)[:40]}{', column by column' if by_column else ''}"
            raise UserError(f"{path} holds {found}; embeddings are float16 or float32 [rows width]")
        if at + shape[0] * shape[1] * dtype.itemsize != size:
            stated = f"its header says {shape[0]:,} rows of {shape[1]} numbers"
            raise UserError(f"{path} has {size:,} bytes, but {stated}; copy it again")
        return cls(path, *shape, dtype, at)

    def read(self, first: int, count: int) -> Shaped[np.ndarray, "n d"]:
        """Read rows as they are stored; OSError where the file ends in them."""
        length = self.width * self.dtype.itemsize
        with self.path.open("rb") as file:
            found = os.pread(file.fileno(), count * length, self.at + first * length)
        if len(found) < count * length:
            raise OSError(f"{self.path} ends in row {first + len(found) // length:,}")
        return np.frombuffer(found, self.dtype).reshape(count, self.width)


class NpyRows:
    """The rows of several such files, one after another.

    Raises UserError where there is none, or they differ in their width or type.
    """

    def __init__(self, files: Sequence[NpyFile]):
        first = files[0]
        for each in files:
            if (each.width, each.dtype) != (first.width, first.dtype):
                found = f"{each.path} has rows of {each.width} numbers of {DTYPES[each.dtype]}"
                raise UserError(f"{found}, {first.path} of {first.width} of {DTYPES[first.dtype]}; keep them apart")
        self.files, self.width, self.dtype = tuple(files), first.width, DTYPES[first.dtype]
        self._ends = np.cumsum([each.rows for each in files]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> Shaped[np.ndarray, " d"]:
        """Read a row as it is stored; OSError as `NpyFile.read`."""
        number = bisect_right(self._ends, row)
        own = self.files[number]
        return own.read(row - self._ends[number] + own.rows, 1)[0]


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return readers[np.lib.format.read_magic(file)](file, max_header_size=MOST_HEADER)
