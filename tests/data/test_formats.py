"""Whatever the same pictures are stored in, a run sees the same batches; and what is no such store gets a line."""

import contextlib
import pickle

import numpy as np
import pytest

from tests.data import formats
from unclip_jax.data import BatchSpec, DataConfig, batches, open_source
from unclip_jax.text.tokenizer import Tokenizer

COUNT = 17


@pytest.fixture(autouse=True)
def homes(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same pictures in every format: the name to open each by, and the folder that tfds has."""
    folder = tmp_path_factory.mktemp("stored")
    records = formats.pictures(COUNT)
    return {kind: formats.write(kind, folder / kind, records) for kind in formats.KINDS}, folder / "tfds"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([f"picture {i}" for i in range(COUNT)] + ["another one"], 300)


def read(source, tokenizer, *, start_step=0, steps=4, process_count=1):
    """Return global batches, put together from the hosts' rows."""
    spec = BatchSpec(batch_size=8, sizes=(8, 16), context=9, seed=3, flip=True)
    found = []
    for host in range(process_count):
        hosts = {"process_index": host, "process_count": process_count}
        with contextlib.closing(batches(source, tokenizer, spec, start_step=start_step, **hosts)) as run:
            found.append([next(run) for _ in range(steps)])
    steps_of_hosts = zip(*found, strict=True)
    return [{name: np.concatenate([rows[name] for rows in step]) for name in step[0]} for step in steps_of_hosts]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)


@pytest.mark.parametrize("kind", formats.KINDS[1:])
def test_batches_are_those_of_the_folder_on_any_number_of_hosts(stored, tokenizer, kind):
    names, data_dir = stored
    expected = read(open_source(names["folder"], "train", "."), tokenizer)
    source = open_source(names[kind], "train", data_dir)
    assert [source.key(i) for i in range(len(source))] == [f"{i:06d}" for i in range(COUNT)]
    assert [source[i].key for i in range(len(source))] == [f"{i:06d}" for i in range(COUNT)]
    assert source[3].captions == ("picture 3", "another one") and source[4].captions == ("picture 4",)
    assert source.report() == {"images": COUNT, "bad": {}}
    for process_count in (1, 2, 4):
        assert_same(read(source, tokenizer, process_count=process_count), expected)
    again = pickle.loads(pickle.dumps(open_source(names[kind], "train", data_dir)))
    assert_same(read(again, tokenizer, start_step=2, steps=2), expected[2:])


@pytest.mark.parametrize("kind", ["parquet", "tfrecord", "array_record", "tfds", "hf", "hf_disk"])
def test_sizes_are_measured_and_columns_are_read(stored, kind):
    names, data_dir = stored
    config = DataConfig(source=names[kind], batch_size=1, data_dir=str(data_dir), where=("aspect <= 1",))
    assert len(config.open(captions=True)) == sum(i % 3 == 0 for i in range(COUNT))
    source = open_source(names[kind], "train", data_dir)
    (column,) = {"width", "key"} & set(source.columns()) - ({"key"} if "width" in source.columns() else set())
    found = [row[column] for row in source.describe(frozenset([column]))]
    assert found == ([12] * COUNT if column == "width" else [f"{i:06d}" for i in range(COUNT)])


@pytest.mark.parametrize("kind", ["parquet", "hub", "tfrecord", "array_record"])
def test_images_alone(stored, kind):
    source = open_source(stored[0][kind], "train", ".", captions=False)
    assert source[3].captions == ("",) and len(source) == COUNT
