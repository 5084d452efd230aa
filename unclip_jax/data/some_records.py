"""Some of the records of a source, and no others: not even where one is bad and another stands in for it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from unclip_jax.core.errors import UserError
from unclip_jax.data.records import KeyedSource, Record, Report


class SomeRecords:
    """The records of a source with these numbers, in this order."""

    def __init__(self, source: KeyedSource, numbers: Int[np.ndarray, " n"] | Sequence[int]):
        self._source, self._numbers = source, np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        for place in range(index, index + len(self)):
            number = int(self._numbers[place % len(self)])
            record = self._source[number]
            # Where another record stands in for a bad one, it may be one of those that are not to be seen.
            if not record.key or record.key == self._source.key(number):
                return record
        raise UserError(f"none of {len(self):,} records can be used; mend the data")

    def key(self, index: int) -> str:
        """Return the key of a record."""
        return self._source.key(int(self._numbers[index]))

    def report(self) -> Report:
        """Report of the whole source."""
        return self._source.report()
