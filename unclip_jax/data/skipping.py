"""Sources that are too large to be checked before a run: a bad record is met while training.

    source[i] = the first good one of the records i, i + 1, ... (mod n)

which is the same on every host and at every start, so batches stay what they are. Bad records are counted, each once,
and the first are named as they are met; a run stops where there are more than `max_bad_share` of all.
"""

import abc
import sys

from unclip_jax.core.errors import UserError
from unclip_jax.core.unicode import printable
from unclip_jax.data.records import Record

NAMED = 10
"""Bad records that are named as they are met."""


class BadRecordError(Exception):
    """A record cannot be used; says why."""


class SkippingSource(abc.ABC):
    """A source whose bad records are left out as they are met.

    Args:
        where: what the source is called in messages.
        count: records, those that prove bad among them.
        faults: what is known to be bad from the start, by its place, with the reason; not among `count`.
        max_bad_share: largest share of all that may be left out.

    Raises UserError where there is nothing to read or too much is known to be bad.
    """

    def __init__(self, where: str, count: int, faults: dict[str, str], max_bad_share: float):
        if not 0 <= max_bad_share <= 1:
            raise UserError(f"max_bad_share is {max_bad_share}; give a share from 0 to 1")
        self._where, self._count, self._max_bad_share = where, count, max_bad_share
        self._bad = dict(faults)
        self._total = count + len(faults)
        if faults:
            self._check()
            print(f"{where}: {len(faults):,} of {self._total:,} records left out: {self._named(3)}", file=sys.stderr)
        if not count:
            raise UserError(f"{where} holds no images with captions; give one that does")

    @abc.abstractmethod
    def read(self, index: int) -> Record:
        """Return a record; raise BadRecordError where it cannot be used."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Say where a record is."""

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        for number in range(index, index + self._count):
            try:
                return self.read(number % self._count)
            except BadRecordError as error:
                self._leave_out(self.name(number % self._count), str(error))
        raise UserError(f"{self._where} has no record that can be used: {self._named(3)}")

    def report(self) -> dict[str, int | dict[str, str]]:
        """Report what there is, and what was left out so far: {"images": int, "bad": {record: reason}}."""
        return {"images": self._total - len(self._bad), "bad": dict(sorted(self._bad.items()))}

    def _leave_out(self, name: str, reason: str) -> None:
        if name in self._bad:
            return
        self._bad[name] = reason
        self._check()
        if len(self._bad) <= NAMED:
            print(f"{printable(name)}: {printable(reason)}; left out", file=sys.stderr)

    def _check(self) -> None:
        if len(self._bad) > self._max_bad_share * self._total:
            share = f"{len(self._bad) / self._total:.1%}, limit {self._max_bad_share:.1%}"
            found = f"{len(self._bad):,} of {self._total:,} records of {self._where} are unusable ({share})"
            raise UserError(f"{found}; mend or remove them: {self._named(3)}")

    def _named(self, most: int) -> str:
        shown = [f"{printable(name)}: {printable(reason)}" for name, reason in list(self._bad.items())[:most]]
        return "; ".join(shown) + ("; ..." if len(self._bad) > most else "")
