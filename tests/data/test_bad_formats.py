"""What is wrong with a file of records: one line where it is the whole, one record less where it is one."""

import gzip
import os
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data import formats
from tests.data.formats import example, pictures, write_tfrecord
from tests.test_hostile_files import answered
from unclip_jax.core.errors import UserError
from unclip_jax.data import DataConfig, open_source
from unclip_jax.data.columns import Columns
from unclip_jax.data.parquet import SPARE
from unclip_jax.data.tfrecords import HEADER

PNG = pictures(1)[0][1]


@pytest.fixture(autouse=True)
def homes(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def opened(name, **more):
    return open_source(name, "train", ".", **more)


def parquet(file, **columns):
    pq.write_table(pa.table(columns), file)
    return str(file)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (
            {"picture": [PNG], "text": ["a"]},
            "no column with a name for the image; set --data.image-column to one of",
        ),
        ({"jpg": [PNG], "words": ["a"]}, "for the caption; set --data.caption-column to one of jpg, words"),
        ({"jpg": [PNG], "text": ["a"], "caption": ["a"]}, "has caption and text; say with --data.caption-column which"),
        ({"jpg": pa.array([], pa.binary()), "text": pa.array([], pa.string())}, "holds no records"),
        ({"jpg": [None], "text": ["a"]}, "1 of 1 records of .* are unusable (100.0%, limit 1.0%)"),
    ],
    ids=["no image", "no caption", "two captions", "no rows", "nothing in it"],
)
def test_parquet_whose_columns_cannot_be_told(tmp_path, columns, line):
    with pytest.raises(UserError) as error:
        opened(parquet(tmp_path / "x.parquet", **columns))[0]
    head, _, tail = line.partition(".*")
    assert head in str(error.value) and tail in str(error.value) and "\n" not in str(error.value)


def test_columns_can_be_told(tmp_path):
    name = parquet(tmp_path / "x.parquet", a=[PNG], b=["one"], c=["two"], d=[7])
    config = DataConfig(source=name, batch_size=1, image_column="a", caption_column="c", key_column="d")
    assert (config.open(captions=True)[0].captions, config.open(captions=True).key(0)) == (("two",), "7")
    with pytest.raises(UserError, match=r"no column 'e'; set --data\.caption-column to one of a, b, c, d"):
        opened(name, columns=Columns(image="a", caption="e"))


def test_parquet_files_that_are_none_or_not_alike(tmp_path):
    parquet(tmp_path / "a.parquet", jpg=[PNG], text=["a"])
    parquet(tmp_path / "b.parquet", jpg=[PNG], txt=["a"])
    with pytest.raises(UserError, match=r"b\.parquet has no column 'text', which .*a\.parquet has"):
        opened(tmp_path)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"b\.parquet is no parquet file that can be read .*; copy it again"):
        opened(tmp_path)


def test_a_bad_row_of_parquet_is_left_out_and_named(tmp_path, capsys):
    images, captions = [PNG, b"no image", None, PNG, PNG], ["a", "b", "c", "", "e"]
    source = opened(parquet(tmp_path / "x.parquet", jpg=images, text=captions), max_bad_share=0.7)
    assert [source[i].captions[0] for i in range(5)] == ["a", "e", "e", "e", "e"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in said] == [
        "x.parquet, row 1: not an image that Pillow can read",
        "x.parquet, row 2: no image",
        "x.parquet, row 3: has an empty text",
    ]
    with pytest.raises(UserError, match=r"1 of 5 records of .* are unusable \(20\.0%, limit 1\.0%\)"):
        opened(str(tmp_path / "x.parquet"))[1]


def test_unpacked_images_are_read_again_and_made_anew_when_the_file_changes(tmp_path, monkeypatch):
    name = parquet(tmp_path / "x.parquet", jpg=[PNG], text=["a"])
    first = opened(name)[0]
    with monkeypatch.context() as patch:
        patch.setattr("unclip_jax.data.parquet.ParquetRows._unpack", lambda *_: pytest.fail("unpacked again"))
        np.testing.assert_array_equal(opened(name)[0].image, first.image)
    other = pictures(2)[1][1]
    parquet(tmp_path / "x.parquet", jpg=[other], text=["a"])
    os.utime(tmp_path / "x.parquet", (1, 1))
    assert opened(name)[0].image.shape != first.image.shape


def test_a_disk_without_room_for_the_images(tmp_path, monkeypatch):
    name = parquet(tmp_path / "x.parquet", jpg=[PNG], text=["a"])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(UserError, match="of images have to be unpacked into .*; make room, or set XDG_CACHE_HOME"):
        opened(name)


def test_images_that_are_more_than_the_file_says(tmp_path, monkeypatch):
    name = parquet(tmp_path / "x.parquet", jpg=[PNG] * 100, text=["a"] * 100)  # one entry of a dictionary
    free = SPARE + 50 * len(PNG)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(UserError, match="of images have to be unpacked into .*; make room, or set XDG_CACHE_HOME"):
        opened(name)
    assert not [file for *_, files in os.walk(os.environ["XDG_CACHE_HOME"]) for file in files]  # no part is left


def records(count=4):
    return [example({"image": PNG, "text": f"a {i}", "key": str(i)}) for i in range(count)]


@pytest.mark.parametrize(
    ("spoil", "keys", "line"),
    [
        (lambda data, at: data[: at + 20] + b"!" + data[at + 21 :], ["0", "2", "2", "3"], "its CRC is another"),
        (lambda data, at: data[: at - 5] + b"!" + data[at - 4 :], ["0"], "is no record, and nothing behind it can be"),
        (lambda data, at: data[: at + 30], ["0"], "the file ends in this record"),
        (lambda data, at: data[:at], ["0"], "the file ends in this record"),
    ],
    ids=["data", "length", "cut in a record", "cut behind a length"],
)
def test_what_is_wrong_in_a_tfrecord_file(tmp_path, spoil, keys, line, capsys):
    whole = records()
    write_tfrecord(tmp_path / "x.tfrecord", whole)
    data = (tmp_path / "x.tfrecord").read_bytes()
    (tmp_path / "x.tfrecord").write_bytes(spoil(data, len(whole[0]) + 16 + HEADER))
    source = opened(str(tmp_path / "x.tfrecord"), max_bad_share=0.5)
    assert [source[i].key for i in range(len(source))] == keys
    assert (
        f"x.tfrecord, byte {len(whole[0]) + 16 + (HEADER if len(keys) > 1 else 0)}: {line}" in capsys.readouterr().err
    )


def test_tfrecord_files_that_are_something_else(tmp_path):
    write_tfrecord(tmp_path / "x.tfrecord", records())
    packed = gzip.compress((tmp_path / "x.tfrecord").read_bytes())
    for content, line in [(packed, "is compressed with gzip"), (b"", "holds no records"), (b"x" * 99, "is no record")]:
        (tmp_path / "x.tfrecord").write_bytes(content)
        with pytest.raises(UserError, match=line):
            opened(str(tmp_path / "x.tfrecord"))
    write_tfrecord(tmp_path / "x.tfrecord", [b"no example"] * 3)
    with pytest.raises(UserError, match="has no column with a name for the image"):
        opened(str(tmp_path / "x.tfrecord"))


def test_array_record_files_that_are_something_else(tmp_path):
    (tmp_path / "x.array_record").write_bytes(b"x" * 100_000)
    with pytest.raises(UserError, match="cannot be read as ArrayRecord"):
        opened(str(tmp_path / "x.array_record"))[0]


def test_names_that_lead_nowhere(tmp_path):
    formats.write("tfds", tmp_path / "tfds", pictures(2))
    formats.write("hf_disk", tmp_path / "hf", pictures(2))
    for name, split, line in [
        ("tfds:captioned_pictures:1.0.0", "test", "has no split 'test' in .*; it has train"),
        ("tfds:no_such_dataset", "train", "no dataset 'no_such_dataset' in"),
        (f"hf:{tmp_path}/hf/disk", "test", r"cannot be had \(it has no split 'test', only train\)"),
        (
            "hf:nobody/nothing",
            "train",
            r"hf:nobody/nothing cannot be had \(.*\); check its name, its split",
        ),
        (f"{tmp_path}/*.parquet", "train", "there is no file .*; give parquet files"),
    ]:
        with pytest.raises(UserError, match=line) as error:
            open_source(name, split, tmp_path / "tfds")
        assert "\n" not in str(error.value)


def test_a_folder_of_several_formats_and_splits_by_name(tmp_path):
    formats.write("hub", tmp_path / "hub", pictures(9))
    assert len(open_source(tmp_path / "hub", "train", ".")) == 9
    assert len(open_source(tmp_path / "hub", "test", ".")) == 1
    write_tfrecord(tmp_path / "hub" / "x.tfrecord", records())
    with pytest.raises(UserError, match="files of several formats: parquet, tfrecord; name those to read"):
        open_source(tmp_path / "hub", "train", ".")


@pytest.mark.parametrize("kind", ["parquet", "tfrecord", "array_record"])
def test_flipped_bytes_end_in_a_result_or_in_a_line(tmp_path, kind):
    formats.write(kind, tmp_path / kind, pictures(9))
    file = sorted((tmp_path / kind).iterdir())[0]
    whole, rng = file.read_bytes(), np.random.default_rng(0)

    def read_all():
        source = opened(tmp_path / kind, max_bad_share=1.0)
        assert all(source[i].captions for i in range(len(source)))

    for number in range(60):
        spoilt = bytearray(whole)
        at = int(rng.integers(len(whole)) if number % 2 else len(whole) - 1 - rng.integers(400))
        spoilt[at] ^= int(rng.integers(1, 256))
        file.write_bytes(spoilt if number % 5 else spoilt[: rng.integers(len(whole))])
        os.utime(file, (number, number))
        answered(read_all, f"number {number}")  # with a result or one line, in time and in little memory
