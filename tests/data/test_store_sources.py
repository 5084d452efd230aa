import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from tests.data.store_files import COUNT, WIDTH, foreign_store, keys, own_store, vectors
from unclip_jax.core.errors import UserError
from unclip_jax.data.config import DataConfig
from unclip_jax.data.folder import FolderSource
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.store_sources import JoinedSource, StoreSource
from unclip_jax.data.stores import EmbeddingStore
from unclip_jax.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_bad_rows_are_left_out_counted_and_named(tmp_path, capsys):
    z_i = vectors()
    z_i[3, 2], z_i[5] = np.nan, 0
    names, captions = keys(), [(f"a {i}",) for i in range(COUNT)]
    names[8], captions[9] = names[1], ("",)
    store = EmbeddingStore(own_store(tmp_path / "s", z_i, names=names, captions=captions))
    source = StoreSource(store, max_bad_share=0.2)
    assert [source[row].key for row in (3, 5, 8, 9)] == [keys()[row] for row in (4, 6, 10, 10)]
    said = capsys.readouterr().err
    for line in ("row 3 (photo/003): its embedding is not finite; left out", "is all zeros", "key is there twice"):
        assert line in said
    assert "row 9 (photo/009): no caption" in said
    assert len(source.report()["bad"]) == 4
    assert store.row_of("photo/001") == 1
    strict = StoreSource(store, max_bad_share=0.1)
    with pytest.raises(UserError, match="3 of 23 records of .* are unusable .13.0%, limit 10.0%."):
        [strict[row] for row in range(COUNT)]


def test_a_store_without_captions_trains_no_prior(tmp_path):
    store = EmbeddingStore(foreign_store(tmp_path / "s", vectors(), [COUNT], key=keys(), describes=["x"] * COUNT))
    with pytest.raises(UserError, match="has no captions; name .* with --data.caption-column: key, describes"):
        StoreSource(store)
    assert StoreSource(store, captions=False)[2].captions == ("",)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([f"a {i}" for i in range(COUNT)] * 2, 300)


def take(count, source, tokenizer, spec, **options):
    with contextlib.closing(batches(source, tokenizer, spec, **options)) as iterator:
        return list(itertools.islice(iterator, count))


def test_batches_of_a_store_are_the_same_on_any_number_of_hosts(tmp_path, tokenizer):
    store = EmbeddingStore(own_store(tmp_path / "s", vectors(), text=vectors(seed=1)))
    spec = BatchSpec(batch_size=8, sizes=(), context=5, embeddings=(("z_i", WIDTH), ("z_t", WIDTH)), seed=2)
    whole = take(6, StoreSource(store), tokenizer, spec)
    assert {name: (value.shape, value.dtype) for name, value in whole[0].items()} == spec.arrays()
    for hosts in (2, 4):
        parts = [take(4, StoreSource(store), tokenizer, spec, start_step=2, process_index=p, process_count=hosts)
                 for p in range(hosts)]  # fmt: skip
        for step in range(4):
            for name in whole[0]:
                np.testing.assert_array_equal(
                    np.concatenate([part[step][name] for part in parts]), whole[step + 2][name]
                )
    rows = np.concatenate([batch["z_i"] for batch in whole])[:COUNT]
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(vectors(), axis=0))


def test_a_store_is_filtered_by_its_columns(tmp_path):
    columns = {"key": keys(), "caption": ["x"] * COUNT, "aesthetic": [float(i) for i in range(COUNT)]}
    folder = foreign_store(tmp_path / "s", vectors(), [10, 13], **columns)
    config = DataConfig(batch_size=2, source=f"store:{folder}", where=("aesthetic >= 20",))
    source = config.open(captions=True, images=False, store=config.open_store())
    assert [source.key(row) for row in range(len(source))] == keys()[20:]
    np.testing.assert_array_equal(source[1].z_i, vectors()[21])
    with pytest.raises(UserError, match="no record has a column 'score'; there are side, aspect, key, caption, aesth"):
        dataclasses.replace(config, where=("score > 1",)).open(captions=True, images=False, store=config.open_store())


@pytest.fixture
def photos(tmp_path):
    """Photo i has one level of grey, i."""
    folder = tmp_path / "photos" / "photo"
    folder.mkdir(parents=True)
    for number in range(COUNT):
        Image.new("RGB", (9, 9), (number,) * 3).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"a {number}")
    return tmp_path / "photos"


def test_embeddings_join_images_by_key_in_whatever_order(tmp_path, photos, tokenizer):
    order = np.random.default_rng(3).permutation(COUNT)
    order = order[order != 6]
    names = [keys()[i] for i in order]
    store = EmbeddingStore(own_store(tmp_path / "s", vectors()[order], names=names, captions=[("b",)] * len(order)))
    source = JoinedSource(FolderSource(photos), store, max_bad_share=0.05)
    spec = BatchSpec(batch_size=11, sizes=(8,), context=5, embeddings=(("z_i", WIDTH),))
    seen = set()
    for batch in take(5, source, tokenizer, spec):
        for image, z_i, tokens in zip(batch["image_8"], batch["z_i"], batch["tokens"], strict=True):
            number = int(image[0, 0, 0])
            seen.add(number)
            np.testing.assert_array_equal(z_i, vectors()[number])
            np.testing.assert_array_equal(tokens, tokenizer.encode([f"a {number}"], 5).tokens[0])
    assert seen == set(range(COUNT)) - {6}
    assert source.report()["bad"] == {"photo/006": "the store has no key 'photo/006'"}
    strict = JoinedSource(FolderSource(photos), store, max_bad_share=0.01)
    with pytest.raises(UserError, match="1 of 23 records of .* are unusable"):
        [strict[row] for row in range(COUNT)]


def test_what_cannot_be_joined_is_said_at_once(tmp_path, photos):
    other = EmbeddingStore(own_store(tmp_path / "s", vectors(), names=[f"x{i}" for i in range(COUNT)]))
    with pytest.raises(UserError, match="has none of the keys of 23 images .*'photo/000', and its rows as 'x0'"):
        JoinedSource(FolderSource(photos), other)
    with pytest.raises(UserError, match="as they are; leave out --data.flip"):
        BatchSpec(batch_size=2, sizes=(8,), embeddings=(("z_i", WIDTH),), flip=True)
    config = DataConfig(batch_size=2, source=f"store:{tmp_path / 's'}")
    with pytest.raises(UserError, match="has no images, and this run needs them; give them as --data.source"):
        config.open(captions=True, images=True, store=config.open_store())
    with pytest.raises(UserError, match="is a store of embeddings already; leave out --data.embeddings"):
        DataConfig(batch_size=2, source="store:a", embeddings="b").open_store()
    with pytest.raises(UserError, match="there is no store of embeddings; leave out --data.store-clip"):
        DataConfig(batch_size=2, store_clip="b").open_store()
