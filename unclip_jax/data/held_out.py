"""Records that a run does not train on, chosen by their keys.

(1) held out where hash(key) < 2^64 share           hash: XXH3, 64 bits, of the key in UTF-8
(2) the first n of a source: those of the n smallest hashes, in their order

so neither the order of a source, nor its format, nor who reads it changes what is held out, and stages that are trained
one after the other on the same records hold out the same ones. A record without a key is taken by its number. A source
whose bad records others stand in for (`unclip_jax.data.skipping`) is read no further than to records of one's own.
"""

import numpy as np
import xxhash
from jaxtyping import UInt64

from unclip_jax.core.errors import UserError
from unclip_jax.data.records import KeyedSource
from unclip_jax.data.some_records import SomeRecords


def split(source: KeyedSource, share: float) -> tuple[KeyedSource, KeyedSource]:
    """Return what to train on, in the source's order, and what equation (1) holds out, at least one record of either.

    Raises UserError for a share that leaves nothing to train on.
    """
    hashes = hashes_of(source)
    # A share below 1 of 2^64, which a double holds, is a number of 64 bits.
    held_out = hashes < np.uint64(int(share * 2.0**64))
    if not held_out.any():
        held_out = hashes == hashes.min()
    if held_out.all():
        found = f"{len(source):,} record{'s' * (len(source) != 1)}"
        raise UserError(f"a share of {share:g} of {found} held out leaves none to train on; lower --validation.share")
    return SomeRecords(source, np.flatnonzero(~held_out)), SomeRecords(source, np.flatnonzero(held_out))


def first(source: KeyedSource, count: int) -> KeyedSource:
    """Return `count` records of a source, or all where there are fewer, by equation (2); each key once."""
    _, numbers = np.unique(hashes_of(source), return_index=True)
    return SomeRecords(source, numbers[:count])


def hashes_of(source: KeyedSource) -> UInt64[np.ndarray, " n"]:
    """Return the hash of every record's key."""
    keys = (source.key(index) or f"#{index}" for index in range(len(source)))
    return np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), np.uint64, len(source))
