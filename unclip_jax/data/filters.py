"""Filters: which records of a source a run wants, by what is stored with them.

    "aesthetic >= 5"    "punsafe < 0.1"    "license == CC0"    "side >= 256"    "aspect <= 2"

    NAME   a column of the source's own, as in its tables or .json files;
           side, the shorter side of the image in px, and aspect, its longer side over the shorter one
    OP     < <= > >= == !=, as texts where the value in the record is one

A record passes where all conditions hold. One that lacks a value does not, and is counted apart. What does not pass is
no fault of the data: it does not count as bad, and no limit holds for it. Filtering reads the columns of all records
once at every start, and of images no more than their headers, where side or aspect is asked for.
"""

import dataclasses
import math
import operator
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.data.records import KeyedSource, Report
from unclip_jax.data.some_records import SomeRecords

ANNOUNCED = 100_000
MEASURED = frozenset({"side", "aspect"})
"""Columns that are measured and not stored."""
SHOWN = 12
"""Columns that a message names."""
_COMPARE: dict[str, Callable[..., bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|==|!=|<|>)\s*([^<>=!]+?)\s*")


class DescribedSource(KeyedSource, Protocol):
    """A source that knows more of its records than image and captions."""

    def describe(self, names: frozenset[str]) -> Iterator[Mapping[str, object]]:
        """Yield of every record, in order, what it has of the columns `names`, and `side` and `aspect` of its image
        where they are among them; of an image that cannot be read these are missing."""
        ...

    def columns(self) -> Sequence[str]:
        """Return the names of the columns, of the first record at least."""
        ...


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition."""

    name: str
    comparison: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read a condition; raise UserError for a text that is none."""
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise UserError(f"{text!r} is no condition; write one as in 'aesthetic >= 5' or 'license == CC0'")
        condition = cls(*found.groups())
        if condition.comparison not in ("==", "!=") and not math.isfinite(_number(condition.value)):
            raise UserError(f"{text!r} compares with {condition.value!r}, which is no number; == and != take texts")
        return condition

    def __str__(self) -> str:
        return f"{self.name} {self.comparison} {self.value}"

    def holds(self, value: object) -> bool | None:
        """Return whether the condition holds for a record's value; None where it has none that can be compared."""
        compare = _COMPARE[self.comparison]
        if isinstance(value, str) and self.comparison in ("==", "!="):
            return compare(value, self.value)
        found, wanted = _number(value), _number(self.value)
        return compare(found, wanted) if math.isfinite(found) and math.isfinite(wanted) else None


class FilteredSource(SomeRecords):
    """The records of a source for which all conditions hold, in the same order.

    Raises UserError where no record passes, or none has a column that a condition names.
    """

    def __init__(self, source: DescribedSource, conditions: Sequence[Condition]):
        names = frozenset(each.name for each in conditions)
        if len(source) >= ANNOUNCED:
            print(f"reading {', '.join(sorted(names))} of {len(source):,} records", file=sys.stderr)
        kept, self._left_out, lacking, seen = [], Counter[str](), Counter[str](), set[str]()
        for index, values in enumerate(source.describe(names)):
            seen |= values.keys()
            for each in conditions:
                holds = each.holds(values.get(each.name))
                if not holds:
                    self._left_out[f"not {each}" if holds is False else f"no {each.name}"] += 1
                    lacking[each.name] += holds is None
                    break
            else:
                kept.append(index)
        for each in conditions:
            if each.name not in seen and lacking[each.name]:
                raise UserError(f"no record has a column {each.name!r}; {_listed(source.columns())}")
        if not kept:
            raise UserError(f"none of {len(source):,} records passes the filters: {self._reasons()}; ask for less")
        super().__init__(source, kept)
        if self._left_out:
            count = len(source) - len(kept)
            print(f"{count:,} of {len(source):,} records do not pass: {self._reasons()}", file=sys.stderr)

    def report(self) -> Report:
        """Report what the source does, less what does not pass."""
        return self._source.report() | {"images": len(self)}

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many records were left out, by the first reason for each."""
        return self._left_out

    def _reasons(self) -> str:
        return ", ".join(f"{reason} {count:,}" for reason, count in self._left_out.most_common())


def measures(size: tuple[int, int] | None, names: frozenset[str]) -> dict[str, float]:
    """Return those of `side` and `aspect` that are asked for, of an image of this width and height in px."""
    if size is None or not min(size):
        return {}
    return {
        name: value for name, value in (("side", float(min(size))), ("aspect", max(size) / min(size))) if name in names
    }


def _number(value: object) -> float:
    """Return a value as a number; NaN where it is none."""
    try:
        return float(value) if isinstance(value, (int, float, str, np.number)) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    return f"there are side, aspect, {', '.join(columns[:SHOWN])}{more}" if columns else "there are side and aspect"
