"""Which records are held out, and that nobody else is seen."""

import dataclasses
import pickle

import numpy as np
import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.data.held_out import first, hashes_of, split
from unclip_jax.data.mixtures import MixtureSource
from unclip_jax.data.records import Record
from unclip_jax.data.skipping import BadRecordError, SkippingSource

KEYS = [f"{number:06d}" for number in range(2000)]


class Keyed(SkippingSource):
    """Records with keys alone; those of `unusable` prove bad."""

    def __init__(self, keys, unusable=()):
        self._keys, self._unusable = list(keys), frozenset(unusable)
        super().__init__("the test", len(self._keys), {}, max_bad_share=1.0)

    def key(self, index):
        return self._keys[index]

    name = key

    def read(self, index):
        if self._keys[index] in self._unusable:
            raise BadRecordError("is bad")
        return Record(image=np.zeros((1, 1, 3), np.uint8), captions=("",), name=self.key(index), key=self.key(index))


class Nameless(Keyed):
    def key(self, index):
        return ""

    def read(self, index):
        return dataclasses.replace(super().read(index), key="", name=self._keys[index])


def keys(source):
    return [source.key(index) for index in range(len(source))]


def test_a_share_is_held_out_and_the_rest_is_in_order():
    training, held_out = split(Keyed(KEYS), 0.1)
    assert sorted(keys(training) + keys(held_out)) == KEYS
    assert keys(training) == sorted(keys(training))
    # Four deviations of a binomial.
    assert abs(len(held_out) - 200) < 4 * np.sqrt(2000 * 0.1 * 0.9)
    assert [training[i].key for i in range(5)] == keys(training)[:5]


def test_neither_order_nor_what_else_is_there_matters():
    shuffled = np.random.default_rng(0).permutation(KEYS).tolist()
    _, held_out = split(Keyed(KEYS), 0.05)
    _, again = split(Keyed(shuffled), 0.05)
    _, of_half = split(Keyed(KEYS[:1000]), 0.05)
    assert set(keys(again)) == set(keys(held_out)) and set(keys(of_half)) == set(keys(held_out)) & set(KEYS[:1000])
    assert keys(first(again, 20)) == keys(first(held_out, 20))
    assert set(keys(split(Keyed(KEYS), 0.1)[1])) > set(keys(held_out))


def test_what_the_hash_is():
    """Its numbers are what runs have held out, so they never change."""
    assert hashes_of(Keyed(["000000", "a/b"])).tolist() == [9958023793038824155, 5257704712954054148]


def test_those_of_the_smallest_hashes_come_first_each_key_once():
    source = MixtureSource([Keyed(KEYS[:10]), Keyed(KEYS[10:14])], [0.5, 0.5])
    assert len(source) == 20
    found = first(source, 14)
    assert sorted(keys(found)) == KEYS[:14] and len(first(source, 100)) == 14
    hashes = hashes_of(found)
    assert (np.diff(hashes.astype(np.float64)) > 0).all()
    training, held_out = split(source, 0.3)
    assert not set(keys(training)) & set(keys(held_out)) and len(training) + len(held_out) == 20


def test_without_keys_the_numbers_count():
    training, held_out = split(Nameless(KEYS), 0.1)
    names = [[source[i].name for i in range(len(source))] for source in (training, held_out)]
    assert sorted(names[0] + names[1]) == KEYS and 130 < len(held_out) < 270


def test_nobody_else_stands_in_for_a_bad_record():
    plain = split(Keyed(KEYS), 0.5)
    bad = [*keys(plain[0])[::2], *keys(plain[1])[::3]]
    for found, whole in zip(split(Keyed(KEYS, bad), 0.5), plain, strict=True):
        seen = {found[i].key for i in range(len(found))}
        assert seen == set(keys(whole)) - set(bad)


def test_nothing_but_bad_records():
    _, held_out = split(Keyed(KEYS), 0.01)
    with pytest.raises(UserError, match="none of .* records can be used"):
        split(Keyed(KEYS, keys(held_out)), 0.01)[1][0]


def test_a_small_source_holds_out_one_record():
    training, held_out = split(Keyed(KEYS[:3]), 0.0001)
    assert (len(training), len(held_out)) == (2, 1)
    with pytest.raises(UserError, match=r"a share of 0.5 of 1 record held out leaves none to train on; lower"):
        split(Keyed(KEYS[:1]), 0.5)


def test_worker_processes_get_it():
    training, _ = split(Keyed(KEYS), 0.1)
    assert keys(pickle.loads(pickle.dumps(training))) == keys(training)
