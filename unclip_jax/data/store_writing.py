"""Writing a store of embeddings, shard by shard, so that it can be killed at any time and carried on.

    store.json      first without shards, which is refused as a store; with them once all are there
    img_emb, text_emb, metadata of a shard     each whole or absent, the parquet last: it has the digests of the others

A shard is done where its parquet says so and the digests hold. The parquet's own metadata, under "unclip_jax", is JSON:
{"digests": {file: digest}, "bad": {record: reason}}.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from unclip_jax.core.digests import Altered, compare, file_digest
from unclip_jax.core.files import atomic_write, write_text
from unclip_jax.data.store_tables import OTHERS
from unclip_jax.data.stores import IMAGES, INFO, METADATA, TEXTS, StoredShard, StoreInfo

_OWN = b"unclip_jax"
SCHEMA = pa.schema(
    [("key", pa.string()), ("image_path", pa.string()), ("caption", pa.string()), (OTHERS, pa.list_(pa.string()))]
)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The records of a shard that could be encoded, and the reasons why others could not, by name."""

    keys: Sequence[str]
    names: Sequence[str]
    captions: Sequence[Sequence[str]]
    z_i: Shaped[np.ndarray, "n d"]
    z_t: Shaped[np.ndarray, "n d"] | None
    bad: Mapping[str, str]


def file_names(number: int, count: int, *, text: bool) -> dict[str, str]:
    """Return the files of shard `number` of `count`, relative to the store, by the folder that each is in."""
    digits = f"{number:0{len(str(count - 1))}d}"
    kinds = (IMAGES, TEXTS) if text else (IMAGES,)
    return {kind: f"{kind}/{kind}_{digits}.npy" for kind in kinds} | {
        METADATA: f"{METADATA}/{METADATA}_{digits}.parquet"
    }


def write_shard(folder: Path, names: Mapping[str, str], encoded: Encoded) -> StoredShard:
    """Write a shard; the same records give the same bytes."""
    digests = {}
    for kind, rows in ((IMAGES, encoded.z_i), (TEXTS, encoded.z_t)):
        if rows is not None:
            with atomic_write(folder / names[kind]) as draft, draft.open("wb") as file:
                np.save(file, np.ascontiguousarray(rows), allow_pickle=False)
            digests[names[kind]] = file_digest(folder / names[kind])
    said = json.dumps({"digests": digests, "bad": dict(encoded.bad)}, sort_keys=True)
    columns = [
        list(encoded.keys),
        list(encoded.names),
        [each[0] for each in encoded.captions],
        [list(each[1:]) for each in encoded.captions],
    ]
    table = pa.table(columns, schema=SCHEMA.with_metadata({_OWN: said.encode()}))
    with atomic_write(folder / names[METADATA]) as draft:
        pq.write_table(table, draft, compression="zstd", write_page_checksum=True)
    return StoredShard(
        rows=len(encoded.keys),
        bad=len(encoded.bad),
        digests=digests | {names[METADATA]: file_digest(folder / names[METADATA])},
    )


def read_shard(folder: Path, names: Mapping[str, str]) -> tuple[StoredShard, dict[str, str]] | None:
    """Return a shard that is done, with what is bad in it; None for one that is not, or not as it was written."""
    try:
        found = pq.read_metadata(folder / names[METADATA])
        said = json.loads((found.metadata or {})[_OWN])
        digests, bad = dict(said["digests"]), dict(said["bad"])
        if set(digests) != {name for kind, name in names.items() if kind != METADATA}:
            return None
        compare({folder / name: digest for name, digest in digests.items()})
        # Read once, so that what is damaged is found before it counts as done.
        if pq.read_table(folder / names[METADATA], page_checksum_verification=True).num_rows != found.num_rows:
            return None
    except (OSError, ValueError, KeyError, TypeError, Altered, pa.ArrowException):
        return None
    own = file_digest(folder / names[METADATA])
    return StoredShard(rows=found.num_rows, bad=len(bad), digests=digests | {names[METADATA]: own}), bad


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process left of files that it was writing; nobody else may be writing."""
    for kind in (IMAGES, TEXTS, METADATA):
        for draft in (folder / kind).glob(".*.tmp"):
            draft.unlink(missing_ok=True)


def write_info(folder: Path, info: StoreInfo) -> None:
    """Write store.json."""
    write_text(folder / INFO, json.dumps(dataclasses.asdict(info), indent=1) + "\n")
