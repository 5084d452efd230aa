"""ArrayRecord files of tf.train.Example, read at random by the array_record library."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.data import examples
from unclip_jax.data.columns import Rows
from unclip_jax.data.skipping import BadRecordError

LOOKED_AT = 100
"""Records that are tried for the names of features."""

DataSource = Any
"""An `ArrayRecordDataSource`."""


class ArrayRecords(Rows):
    """The examples in ArrayRecord files.

    Raises UserError for files that cannot be read.
    """

    def __init__(self, shards: Sequence[str]):
        self.where = shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1:,} more"
        self._shards = tuple(shards)
        try:
            self._count = len(self._records)
        except Exception as error:  # the library's own, by the status that C++ gave
            why = " ".join(str(error).split())[:120]
            raise UserError(f"{self.where} cannot be read as ArrayRecord ({why}); give whole files of it") from error
        self._columns = self._first_names()

    def __getstate__(self) -> dict[str, object]:
        # Open files do not travel to another process.
        return {name: value for name, value in vars(self).items() if name != "_records"}

    @functools.cached_property
    def _records(self) -> DataSource:
        with needs("data"):
            from array_record.python.array_record_data_source import ArrayRecordDataSource
        return ArrayRecordDataSource(list(self._shards))

    @property
    def columns(self) -> Sequence[str]:
        """The names of the first example's features."""
        return self._columns

    def __len__(self) -> int:
        return self._count

    def cells(self, index: int, names: Sequence[str]) -> Mapping[str, object]:
        cells = self._parsed(index)
        return {name: cells[name] for name in names if name in cells}

    def place(self, index: int) -> str:
        if len(self._shards) == 1:
            return f"{os.path.basename(self._shards[0])}, record {index}"
        return f"{os.path.basename(self._shards[0])} and others, record {index}"

    def _parsed(self, index: int) -> dict[str, object]:
        try:
            record = self._records[index]
        except Exception as error:
            raise BadRecordError("cannot be read; the file is damaged here") from error
        return examples.parse(record)

    def _first_names(self) -> Sequence[str]:
        for index in range(min(self._count, LOOKED_AT)):
            try:
                return sorted(self._parsed(index))
            except BadRecordError:
                continue
        return ()
