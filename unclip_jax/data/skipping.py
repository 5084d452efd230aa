"""Sources that go on where a record proves bad: too large to be checked before a run, or changed after that.

    source[i] = the first good one of the records i, i + 1, ... (mod n)

which is the same on every host and at every start, so batches stay what they are. Bad records are counted, each once,
and the first are named as they are met; a run stops where there are more than `max_bad_share` of all. Each process that
reads counts those that it has met.
"""

import abc
import sys

from unclip_jax.core.errors import UserError
from unclip_jax.core.unicode import printable
from unclip_jax.data.records import Record, Report
from unclip_jax.images.transforms import BrokenImageError

NAMED = 10
"""Bad records that are named as they are met."""


def check_limits(max_bad_share: float, min_side: int) -> None:
    """Raise UserError for a share or a side in px that makes no sense."""
    if not 0 <= max_bad_share <= 1:
        raise UserError(f"max_bad_share is {max_bad_share}; give a share from 0 to 1")
    if min_side < 1:
        raise UserError(f"min_side is {min_side}; give 1 or more pixels")


class BadRecordError(Exception):
    """A record cannot be used; says why."""


class SkippingSource(abc.ABC):
    """A source whose bad records are left out as they are met.

    Args:
        where: what the source is called in messages.
        count: records, those that prove bad among them.
        bad: what is known to be bad from the start, by its place, with the reason; not among `count`.
        max_bad_share: largest share of all that may be left out.
        counted_twice: how many of `bad` are no records of their own.
    """

    def __init__(self, where: str, count: int, bad: dict[str, str], max_bad_share: float, counted_twice: int = 0):
        self._where, self._count, self._max_bad_share = where, count, max_bad_share
        self._bad, self._counted_twice = dict(bad), counted_twice
        self._total = count + self._num_bad

    @property
    def _num_bad(self) -> int:
        return len(self._bad) - self._counted_twice

    @abc.abstractmethod
    def read(self, index: int) -> Record:
        """Return a record; raise BadRecordError or BrokenImageError where it cannot be used."""

    @abc.abstractmethod
    def key(self, index: int) -> str:
        """Return the key of a record, good or bad."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Say where a record is."""

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        for number in range(index, index + self._count):
            try:
                return self.read(number % self._count)
            except (BadRecordError, BrokenImageError) as error:
                name = self.name(number % self._count)
                self._leave_out(name, str(error).removeprefix(f"{name}: "))
        raise UserError(f"{self._where} has no record that can be used: {self.named(3)}")

    def report(self) -> Report:
        """Report what there is, and what was left out so far."""
        return {"images": self._total - self._num_bad, "bad": dict(sorted(self._bad.items()))}

    def _leave_out(self, name: str, reason: str) -> None:
        if name in self._bad:
            return
        self._bad[name] = reason
        self.check()
        if self._num_bad <= NAMED:
            print(f"{printable(name)}: {printable(reason)}; left out", file=sys.stderr)

    def check(self) -> None:
        """Raise UserError where too much is bad."""
        if self._num_bad > self._max_bad_share * self._total:
            share = f"{self._num_bad / self._total:.1%}, limit {self._max_bad_share:.1%}"
            found = f"{self._num_bad:,} of {self._total:,} records of {self._where} are unusable ({share})"
            raise UserError(f"{found}; mend or remove them: {self.named(3)}")

    def named(self, most: int) -> str:
        """Return the first of what is bad."""
        shown = [f"{printable(name)}: {printable(reason)}" for name, reason in list(self._bad.items())[:most]]
        return "; ".join(shown) + ("; ..." if len(self._bad) > most else "")
