import contextlib
import io
import json
import pickle

import numpy as np
import pytest

from tests.data.store_files import COUNT, SPACE, WIDTH, foreign_store, keys, own_store, vectors
from unclip_jax.core.errors import UserError
from unclip_jax.data import stores
from unclip_jax.data.skipping import BadRecordError
from unclip_jax.data.store_sources import StoreSource
from unclip_jax.data.store_tables import Wanted
from unclip_jax.data.store_writing import file_names, read_shard
from unclip_jax.data.stores import EmbeddingStore, Space


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_rows_and_keys_of_our_own(tmp_path):
    z_i, z_t = vectors(), vectors(seed=1)
    captions = [("one",), ("two", "deux"), *[(f"{i}",) for i in range(COUNT - 2)]]
    store = EmbeddingStore(own_store(tmp_path / "s", z_i, captions=captions, text=z_t))
    assert sorted(path.name for path in (tmp_path / "s" / "img_emb").iterdir()) == [
        f"img_emb_{i}.npy" for i in range(3)
    ]
    store.fit(SPACE)
    for row, key in enumerate(keys()):
        assert store.row_of(key) == row and store.index[row].key == key
        np.testing.assert_array_equal(store.z_i(row), z_i[row])
        np.testing.assert_array_equal(store.z_t(row), z_t[row])
    assert store.row_of("photo/999") is None and store.row_of("") is None
    assert store.index[1].captions == ("two", "deux")
    # z_t is of the first caption, so that it is no use where there are several.
    assert store.arrays == ("z_i",)
    assert EmbeddingStore(own_store(tmp_path / "one", z_i, text=z_t)).arrays == ("z_i", "z_t")
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.z_i(7), z_i[7])


def test_an_index_is_kept_and_made_again_where_it_is_damaged(tmp_path, monkeypatch):
    folder = own_store(tmp_path / "s", vectors())
    index = EmbeddingStore(folder).index.folder
    read = []
    monkeypatch.setattr(
        stores, "read_table", lambda path, wanted, real=stores.read_table: read.append(path) or real(path, wanted)
    )
    EmbeddingStore(folder)
    assert not read
    (index / "ends.npy").write_bytes(b"nothing")
    assert EmbeddingStore(folder).row_of("photo/022") == 22 and len(read) == 3


def test_a_home_that_is_read_only_costs_a_reading(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    folder = own_store(tmp_path / "s", vectors())
    blocked.chmod(0o500)
    try:
        store = EmbeddingStore(folder, cache_dir=blocked / "inside")
        assert store.row_of("photo/011") == 11
    finally:
        blocked.chmod(0o700)


def test_what_clip_retrieval_writes(tmp_path):
    z_i = vectors(dtype=np.float16)
    columns = {"image_path": [f"{key}.jpg" for key in keys()], "caption": [f"a {i}" for i in range(COUNT)]}
    store = EmbeddingStore(foreign_store(tmp_path / "s", z_i, [10, 13], **columns))
    with pytest.raises(UserError, match="does not say which CLIP.*--data.store-clip"):
        store.fit(SPACE)
    store.fit(SPACE, stated=SPACE.clip)
    # float16 rounds a number by 2**-11 of itself, and the norm by no more.
    np.testing.assert_allclose(store.z_i(store.row_of("photo/012")), vectors()[12], rtol=0, atol=2 * 2**-11)
    assert np.linalg.norm(store.z_i(3)) == pytest.approx(1, abs=1e-6)
    columns["image_path"] = [f"/data/birds/{path}" for path in columns["image_path"]]
    folder = foreign_store(tmp_path / "t", z_i, [10, 13], **columns)
    assert EmbeddingStore(folder).row_of("/data/birds/photo/012") == 12
    assert EmbeddingStore(folder, Wanted(root="/data/birds/")).row_of("photo/012") == 12
    raw = Space(clip=SPACE.clip, embed_dim=WIDTH, unit=False)
    with pytest.raises(UserError, match="holds unit vectors, and z_i of this CLIP are none"):
        store.fit(raw, stated=SPACE.clip)


def test_z_i_that_are_no_unit_vectors_are_taken_as_the_clip_has_them(tmp_path):
    z_i = 17 * vectors()
    folder = foreign_store(tmp_path / "s", z_i, [COUNT], id=keys(), caption=["x"] * COUNT)
    raw, store = Space(clip=SPACE.clip, embed_dim=WIDTH, unit=False), EmbeddingStore(folder)
    store.fit(raw, stated=SPACE.clip)
    np.testing.assert_array_equal(store.z_i(5), z_i[5])
    store.fit(SPACE, stated=SPACE.clip)
    np.testing.assert_allclose(store.z_i(5), vectors()[5], rtol=1e-6)


def test_what_pd12m_has_joins_by_the_number_of_the_row(tmp_path):
    columns = {"id": keys(), "caption": [f"a {i}" for i in range(COUNT)], "width": list(range(COUNT))}
    layout = ("embeddings", "metadata")
    store = EmbeddingStore(foreign_store(tmp_path / "s", vectors(), [20, 3], layout, cut=[9, 9, 5], **columns))
    for row in range(COUNT):
        assert store.index[row].key == keys()[row] and store.index[row].captions == (f"a {row}",)
    short = {name: values[:-1] for name, values in columns.items()}
    with pytest.raises(UserError, match="holds 23 embeddings of images and 22 rows of metadata"):
        EmbeddingStore(foreign_store(tmp_path / "t", vectors(), [20, 3], layout, cut=[9, 9, 4], **short))


def test_what_dalle2_pytorchs_decoder_reads_has_keys_of_img2dataset(tmp_path):
    z_i = vectors()
    z_i[4] = 0
    (tmp_path / "s").mkdir()
    np.save(tmp_path / "s" / "img_emb_00007.npy", z_i[:12])
    np.save(tmp_path / "s" / "img_emb_00011.npy", z_i[12:])
    store = EmbeddingStore(tmp_path / "s")
    store.fit(SPACE, stated=SPACE.clip)
    np.testing.assert_allclose(store.z_i(store.row_of("000110003")), z_i[15], rtol=1e-6)
    with pytest.raises(BadRecordError, match="all zeros"):
        store.z_i(store.row_of("000070004"))


def test_shards_are_taken_in_the_order_of_their_numbers(tmp_path):
    z_i = vectors(12)
    store = EmbeddingStore(foreign_store(tmp_path / "s", z_i, [1] * 12, key=keys(12), caption=["x"] * 12))
    np.testing.assert_array_equal([store.z_i(row) for row in range(12)], z_i)


@pytest.mark.parametrize(
    ("stated", "line"),
    [
        ({"clip": "b" * 64}, "of another CLIP: it is of bbbbbbbbbbbb, and --clip is aaaaaaaaaaaa"),
        ({"embedding": "raw"}, None),
    ],
)
def test_a_store_of_another_clip_is_refused(tmp_path, stated, line):
    store = EmbeddingStore(own_store(tmp_path / "s", vectors(), **stated))
    with pytest.raises(UserError, match=line) if line else contextlib.nullcontext():
        store.fit(SPACE)
    if line is None:
        with pytest.raises(UserError, match="embeddings of 6 numbers, and the CLIP of 7"):
            store.fit(Space(clip=SPACE.clip, embed_dim=7, unit=True))
        with pytest.raises(UserError, match="is of the CLIP aaaaaaaaaaaa, not of cccccccccccc as --data.store-clip"):
            store.fit(SPACE, stated="c" * 64)


def damage(folder, name, change):
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(data))


def edited(**fields):
    return lambda data: json.dumps(json.loads(data) | fields).encode()


def saved(array):
    def change(_):
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    return change


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("store.json", lambda data: b"{", "store.json is not JSON"),
        ("store.json", edited(format=9), "has format 9, this version reads 1"),
        ("store.json", edited(extra=1), "extra: unknown field"),
        ("store.json", edited(shards=[]), "not encoded to its end; run the same command again"),
        ("store.json", edited(embed_dim=5), "holds 23 rows of 6 numbers, and store.json says 23 rows of 5"),
        ("store.json", edited(dtype="float16"), "does not hold what store.json says"),
        ("img_emb/img_emb_1.npy", lambda data: data[:-3], "its header says 10 rows of 6 numbers; copy it again"),
        ("img_emb/img_emb_1.npy", lambda data: b"no", "no .npy that can be read"),
        ("img_emb/img_emb_1.npy", saved(np.zeros((10, 6))), "holds float64 of shape"),
        ("img_emb/img_emb_1.npy", saved(np.zeros(10, np.float32)), "embeddings are float16 or float32 .rows width."),
        ("img_emb/img_emb_1.npy", saved(np.array([{}] * 3)), "holds object of shape"),
        ("img_emb/img_emb_1.npy", saved(np.zeros((10, 5), np.float32)), "rows of 5 numbers of float32, .* of 6"),
        ("img_emb/img_emb_1.npy", None, "holds 13 rows of 6 numbers, and store.json says 23"),
        ("metadata/metadata_1.parquet", lambda data: data[:-9], "metadata_1.parquet is not as it was written"),
        ("metadata/metadata_1.parquet", None, "metadata_1.parquet is not as it was written"),
        ("img_emb/img_emb_1.npy", lambda data: data[:-1] + b"\1", "img_emb_1.npy is not as it was written"),
    ],
)
def test_what_is_wrong_with_a_store_is_one_line(tmp_path, name, change, line):
    folder = own_store(tmp_path / "s", vectors())
    damage(folder, name, change)
    with pytest.raises(UserError, match=line):
        EmbeddingStore(folder)


def test_what_is_wrong_with_others_stores_is_one_line(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        EmbeddingStore(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no store of embeddings, it has no img_emb"):
        EmbeddingStore(tmp_path)
    both = foreign_store(tmp_path / "a", vectors(), [10, 13], key=keys(), caption=["x"] * COUNT, text=["y"] * COUNT)
    with pytest.raises(UserError, match="has caption and text; say with --data.caption-column which is the caption"):
        EmbeddingStore(both)
    assert EmbeddingStore(both, Wanted(caption="text")).index[3].captions == ("y",)
    assert EmbeddingStore(both, Wanted(captions=False)).index[3].captions == ()
    with pytest.raises(UserError, match="has no column 'id'; set --data.key-column to one of key, caption, text"):
        EmbeddingStore(both, Wanted(key="id"))
    shifted = foreign_store(tmp_path / "b", vectors(), [10, 13], cut=[11, 12], key=keys(), caption=["x"] * COUNT)
    with pytest.raises(UserError, match="img_emb_0.npy has 10 rows, and .*metadata_0.parquet 11"):
        EmbeddingStore(shifted)
    broken = foreign_store(tmp_path / "c", vectors(), [23], key=keys(), caption=["x"] * COUNT)
    damage(broken, "metadata/metadata_0.parquet", lambda data: data[:40] + b"?" * 8)
    with pytest.raises(UserError, match="metadata_0.parquet is no parquet that can be read"):
        EmbeddingStore(broken)
    large = tmp_path / "d"
    large.mkdir()
    np.save(large / "img_00001.npy", np.ones((10_001, 2), np.float16))
    with pytest.raises(UserError, match="has no parquet that says what its rows are"):
        EmbeddingStore(large)


def test_a_shard_is_done_where_its_digests_hold(tmp_path):
    own_store(tmp_path, vectors(), text=vectors(seed=1))
    names = file_names(0, 3, text=True)
    found = read_shard(tmp_path, names)
    assert found is not None and found[0].rows == 10 and set(found[0].digests) == set(names.values())
    for name in names.values():
        data = bytearray((tmp_path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / name).write_bytes(data)
        assert read_shard(tmp_path, names) is None
        data[len(data) // 2] ^= 1
        (tmp_path / name).write_bytes(data)
    assert read_shard(tmp_path, file_names(0, 3, text=False)) is None


@pytest.mark.parametrize("name", ["store.json", "img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"])
def test_flipped_bytes_end_in_rows_or_in_one_line(tmp_path, name):
    own_store(tmp_path / "s", vectors(), shard=COUNT)
    if name == "metadata/metadata_0.parquet":
        # Without digests it is the reader alone that is in the way.
        (tmp_path / "s" / "store.json").unlink()
    path, rng = tmp_path / "s" / name, np.random.default_rng(0)
    whole, outcomes = path.read_bytes(), set()
    for number in range(60):
        data = bytearray(whole)
        # Headers and footers are where it matters most.
        at = rng.integers(min(len(data), 128)) if number % 3 else -1 - rng.integers(min(len(data), 700))
        data[at] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        try:
            source = StoreSource(
                EmbeddingStore(tmp_path / "s", cache_dir=tmp_path / f"cache{number}"), max_bad_share=1.0
            )
            outcomes.add(np.isfinite(source[3].z_i).all())
        except UserError as error:
            outcomes.add(str(error).count("\n"))
    assert 0 in outcomes and outcomes <= {0, True}
