import pickle
from collections import Counter

import numpy as np
import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.data import Record
from unclip_jax.data.mixtures import MixtureSource, parts_of

IMAGE = np.zeros((2, 2, 3), np.uint8)


class Numbers:
    """Records that are called NAME0, NAME1, ..."""

    def __init__(self, name, count):
        self._name, self._count = name, count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return Record(image=IMAGE, captions=("",), name=self.key(index), key=self.key(index))

    def report(self):
        return {"images": self._count, "bad": {f"{self._name}-": "broken"}}

    def key(self, index):
        assert 0 <= index < self._count
        return f"{self._name}{index}"


def listed(source):
    keys = [source.key(i) for i in range(len(source))]
    assert [source[i].key for i in range(len(source))] == keys
    return Counter(keys)


def test_by_size_each_record_is_there_once():
    source = MixtureSource([Numbers("a", 3), Numbers("b", 5)], None)
    found = listed(source)
    assert source.report() == {"images": 8, "bad": {"a-": "broken", "b-": "broken"}}
    assert found == Counter([*(f"a{i}" for i in range(3)), *(f"b{i}" for i in range(5))])


@pytest.mark.parametrize(
    "sizes, weights", [((10, 100), (1.0, 1.0)), ((10, 100), (3.0, 1.0)), ((7, 20, 4), (0.2, 0.5, 0.3))]
)
def test_weights_are_shares_of_an_epoch_and_nothing_is_missed(sizes, weights):
    parts = [Numbers("abc"[i], size) for i, size in enumerate(sizes)]
    source = pickle.loads(pickle.dumps(MixtureSource(parts, weights)))
    found = listed(source)
    shares = Counter()
    for key, count in found.items():
        shares[key[0]] += count
    total = len(source)
    for i, weight in enumerate(weights):
        assert abs(shares["abc"[i]] - weight / sum(weights) * total) <= 1
    assert len(found) == sum(sizes)
    # One part is gone through once, and of no part is a record there twice more often than another.
    per_part = [[found[f"{'abc'[i]}{n}"] for n in range(size)] for i, size in enumerate(sizes)]
    assert all(max(counts) - min(counts) <= 1 for counts in per_part) and [1] in [sorted(set(c)) for c in per_part]


def test_no_index_beyond_the_end():
    with pytest.raises(IndexError):
        MixtureSource([Numbers("a", 3)], None)[3]


@pytest.mark.parametrize(
    "text, names, weights",
    [
        ("photos", ["photos"], None),
        ("a/*.tar::b/*.tar", ["a/*.tar::b/*.tar"], None),
        ("a + b", ["a", "b"], None),
        ("0.7 * a/{0..9}.tar + 3*hf:x/y", ["a/{0..9}.tar", "hf:x/y"], [0.7, 3.0]),
        ("a+b", ["a+b"], None),
        ("*.tar", ["*.tar"], None),
        ("2 * a", ["a"], [2.0]),
    ],
)
def test_how_a_mixture_is_written(text, names, weights):
    assert parts_of(text) == (names, weights)


@pytest.mark.parametrize(
    "text, line",
    [
        ("0.5 * a + b", "'b' has no weight in a mixture where others have"),
        ("0 * a + 1 * b", "the weight 0 of a mixture must be a number above 0"),
        ("1.2.3 * a + 1 * b", "the weight 1.2.3 of a mixture must be a number above 0"),
        ("a +  + b", "has an empty part"),
    ],
)
def test_what_is_no_mixture(text, line):
    with pytest.raises(UserError, match=line.replace("*", r"\*")):
        parts_of(text)


def test_weights_too_far_apart():
    with pytest.raises(UserError, match="make an epoch of inf records"):
        MixtureSource([Numbers("a", 2), Numbers("b", 2)], [1e-300, 1e300])
