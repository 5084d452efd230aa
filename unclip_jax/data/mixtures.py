"""Several sources as one, in proportions.

    "0.7 * shards/{000..099}.tar + 0.3 * photos"      weights; they need not add up to 1
    "shards/{000..099}.tar + photos"                  by their sizes: each record once

(1) L = max_i n_i / w_i            records in an epoch, of parts with n_i records and weights w_i that add up to 1
(2) c_i = round(w_i L)             of them from part i: its records in turn, again and again

so in an epoch every record of every part is there at least once, and those of the part that has most for its weight
once.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.data.records import KeyedSource, Record, Report

MOST_RECORDS = 1 << 40
_PART = re.compile(r"(?:(?P<weight>[0-9.]+)\s*\*\s*)?(?P<name>.+)", re.DOTALL)


class MixtureSource:
    """Equations (1) and (2).

    Args:
        parts: the sources.
        weights: of each; None takes every record once.

    Raises UserError for weights that make an epoch too long to count.
    """

    def __init__(self, parts: Sequence[KeyedSource], weights: Sequence[float] | None):
        sizes = np.array([len(part) for part in parts], np.int64)
        shares = sizes if weights is None else np.asarray(weights, np.float64)
        shares = shares / shares.sum()
        with np.errstate(divide="ignore"):
            length = float((sizes / shares).max())
        if not length < MOST_RECORDS:
            raise UserError(f"the weights of the mixture make an epoch of {length:.3g} records; bring them closer")
        counts = sizes if weights is None else np.maximum(np.rint(shares * length).astype(np.int64), 1)
        self._parts, self._sizes, self._ends = tuple(parts), sizes, np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        part, own = self._place(index)
        return self._parts[part][own]

    def key(self, index: int) -> str:
        """Return the key of a record."""
        part, own = self._place(index)
        return self._parts[part].key(own)

    def report(self) -> Report:
        """Report what the parts do, together."""
        bad: dict[str, str] = {}
        for each in self._parts:
            found = each.report()["bad"]
            assert isinstance(found, dict)
            bad |= found
        return {"images": int(self._sizes.sum()), "bad": bad}

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[part - 1]) if part else 0
        return part, (index - first) % int(self._sizes[part])


def parts_of(source: str) -> tuple[list[str], list[float] | None]:
    """Return the names of the parts of a mixture, and their weights; a source that is none is its own only part.

    Raises UserError where some parts have weights and others none, or a weight is not above 0.
    """
    names, weights = [], []
    for each in source.split(" + "):
        found = _PART.fullmatch(each.strip())
        if found is None:
            raise UserError(f"the mixture {source!r} has an empty part; write A + B, or 0.7 * A + 0.3 * B")
        names.append(found["name"])
        weights.append(found["weight"])
    if len(names) == 1 and weights[0] is None:
        return names, None
    if None in weights:
        if set(weights) == {None}:
            return names, None
        lacking = names[weights.index(None)]
        raise UserError(f"{lacking!r} has no weight in a mixture where others have; give all of them one, or none")
    return names, [_weight(text) for text in weights]


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"the weight {text} of a mixture must be a number above 0")
    return weight
