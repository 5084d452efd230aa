"""ArrayRecord files of tf.train.Example, read at random by the array_record library."""

import functools
import os
from collections.abc import Sequence
from typing import Any

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.data.examples import ExampleRows
from unclip_jax.data.files import called
from unclip_jax.data.skipping import BadRecordError

DataSource = Any
"""An `ArrayRecordDataSource`."""


class ArrayRecords(ExampleRows):
    """The examples in ArrayRecord files.

    Raises UserError for files that cannot be read.
    """

    def __init__(self, shards: Sequence[str]):
        self.where = called(shards)
        self._shards = tuple(shards)
        try:
            self._count = len(self._records)
        except Exception as error:  # the library's own, by the status that C++ gave
            why = " ".join(str(error).split())[:120]
            raise UserError(f"{self.where} cannot be read as ArrayRecord ({why}); give whole files of it") from error

    def __getstate__(self) -> dict[str, object]:
        # Open files do not travel to another process.
        return {name: value for name, value in vars(self).items() if name != "_records"}

    @functools.cached_property
    def _records(self) -> DataSource:
        with needs("data"):
            from array_record.python.array_record_data_source import ArrayRecordDataSource
        return ArrayRecordDataSource(list(self._shards))

    def __len__(self) -> int:
        return self._count

    def place(self, index: int) -> str:
        first, *others = self._shards
        return f"{os.path.basename(first)}{' and others' if others else ''}, record {index}"

    def record(self, index: int) -> bytes:
        try:
            return self._records[index]
        except Exception as error:
            raise BadRecordError("cannot be read; the file is damaged here") from error
