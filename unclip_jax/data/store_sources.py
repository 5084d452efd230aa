"""Sources of records that bring embeddings: a store alone, and images with a store joined to them by key."""

import dataclasses
from collections.abc import Iterator

from unclip_jax.core.errors import UserError
from unclip_jax.core.unicode import printable
from unclip_jax.data.captions import NO_CAPTION
from unclip_jax.data.records import NO_IMAGE, KeyedSource, Record, Report
from unclip_jax.data.skipping import BadRecordError, SkippingSource
from unclip_jax.data.stores import EmbeddingStore
from unclip_jax.data.tables import caption_fault

COMPARED = 256
"""Keys of the images that are looked up in a store at the start."""


class StoreSource(SkippingSource):
    """The rows of a store: embeddings and captions, no images.

    Args:
        store: whose embeddings fit the run (`EmbeddingStore.fit`).
        max_bad_share: largest share of rows that may be unusable.
        captions: False takes embeddings alone; every caption is then "".

    Raises UserError where too much is unusable.
    """

    def __init__(self, store: EmbeddingStore, *, max_bad_share: float = 0.01, captions: bool = True):
        self._store, self._captions = store, captions
        super().__init__(str(store.path), len(store), {}, max_bad_share)
        if captions and not store.index.captioned:
            columns = ", ".join(map(printable, store.columns())) or "none, it has no parquet"
            raise UserError(f"{store.path} has no captions; name their column with --data.caption-column: {columns}")

    def key(self, index: int) -> str:
        return self._store.index[index].key

    def name(self, index: int) -> str:
        return self._store.index[index].name

    def read(self, index: int) -> Record:
        if index in self._store.index.twice:
            raise BadRecordError("its key is there twice")
        said = self._store.index[index]
        captions = said.captions if self._captions else ("",)
        if not captions:
            raise BadRecordError(NO_CAPTION)
        if self._captions and (fault := caption_fault("caption", captions)) is not None:
            raise BadRecordError(fault)
        z_t = self._store.z_t(index) if "z_t" in self._store.arrays else None
        z_i = self._store.z_i(index)
        return Record(image=NO_IMAGE, captions=captions, name=said.name, key=said.key, z_i=z_i, z_t=z_t)

    def describe(self, names: frozenset[str]) -> Iterator[dict[str, object]]:
        """Yield the columns `names` of every row; see `filters.DescribedSource`."""
        return self._store.describe(names)

    def columns(self) -> list[str]:
        """Return the names of the columns."""
        return self._store.columns()


class JoinedSource(SkippingSource):
    """The records of a source of images, each with the z_i that a store has under its key.

    Which record another stands in for does not matter: what is looked up is the key of the record that is there.

    Args:
        source: the images.
        store: whose embeddings fit the run (`EmbeddingStore.fit`).
        max_bad_share: largest share of records that the store may lack.

    Raises UserError for a source without keys, and where the store has none of the first that are looked up.
    """

    def __init__(self, source: KeyedSource, store: EmbeddingStore, *, max_bad_share: float = 0.01):
        self._source, self._store = source, store
        step = max(1, len(source) // COMPARED)
        keys = [source.key(index) for index in range(0, len(source), step)]
        if not any(key and store.row_of(key) is not None for key in keys):
            ours, theirs = repr(keys[0]), repr(store.index[0].key)
            raise UserError(
                f"{store.path} has none of the keys of {len(keys):,} images that were looked up: these are called as "
                f"{ours}, and its rows as {theirs}; give the store of these images"
            )
        super().__init__(str(store.path), len(source), {}, max_bad_share)

    def key(self, index: int) -> str:
        return self._source.key(index)

    def name(self, index: int) -> str:
        return self._source.key(index)

    def read(self, index: int) -> Record:
        record = self._source[index]
        row = self._store.row_of(record.key) if record.key else None
        if row is None:
            raise BadRecordError(f"the store has no key {record.key!r}")
        return dataclasses.replace(record, z_i=self._store.z_i(row))

    def report(self) -> Report:
        own, theirs = super().report()["bad"], self._source.report()
        assert isinstance(own, dict) and isinstance(theirs["bad"], dict) and isinstance(theirs["images"], int)
        return {"images": theirs["images"] - len(own), "bad": theirs["bad"] | own}
