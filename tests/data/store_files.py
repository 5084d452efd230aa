"""Stores of embeddings for tests, as train.encode writes them and as others do."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unclip_jax.data.store_writing import Encoded, file_names, write_info, write_shard
from unclip_jax.data.stores import Space, StoreInfo

WIDTH, COUNT = 6, 23
SPACE = Space(clip="a" * 64, embed_dim=WIDTH, unit=True)


def vectors(count=COUNT, seed=0, dtype=np.float32):
    found = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(dtype)


def keys(count=COUNT):
    return [f"photo/{i:03d}" for i in range(count)]


def own_store(folder, z_i, *, names=None, captions=None, text=None, shard=10, **said):
    """A store as train.encode writes it."""
    names, captions = names or keys(len(z_i)), captions or [(f"a {i}",) for i in range(len(z_i))]
    starts = range(0, len(z_i), shard)
    shards = []
    for number, start in enumerate(starts):
        own = slice(start, start + shard)
        z_t = None if text is None else text[own]
        encoded = Encoded(names[own], names[own], captions[own], z_i[own], z_t, {})
        shards.append(write_shard(folder, file_names(number, len(starts), text=text is not None), encoded))
    stated = {"clip": SPACE.clip, "embedding": "unit", "embed_dim": WIDTH, "dtype": str(z_i.dtype)} | said
    info = StoreInfo(
        text=text is not None, source="photos", records=len(z_i), keys="", shard_records=shard, batch_size=4,
        shards=tuple(shards), **stated,
    )  # fmt: skip
    write_info(folder, info)
    return folder


def foreign_store(folder, z_i, sizes, layout=("img_emb", "metadata"), cut=None, **columns):
    """A store as others write it: .npy of these sizes, parquet of the sizes `cut`."""
    images, tables = layout
    for kind, parts in ((images, sizes), (tables, cut or sizes)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, (start, end) in enumerate(itertools.pairwise([0, *np.cumsum(parts).tolist()])):
            if kind == images:
                np.save(folder / images / f"img_emb_{number}.npy", z_i[start:end])
            if kind == tables and columns:
                own = {name: values[start:end] for name, values in columns.items()}
                pq.write_table(pa.table(own), folder / tables / f"metadata_{number}.parquet")
    return folder
