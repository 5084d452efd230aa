"""Files in a bucket are read as those on the disk are. The bucket is fsspec's file system in memory."""

from pathlib import Path

import fsspec
import pytest

from tests.data import formats
from tests.data.test_formats import assert_same, read
from unclip_jax.core.errors import UserError
from unclip_jax.data import open_source
from unclip_jax.text.tokenizer import Tokenizer

BUCKET = "memory://bucket"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def upload(folder, to):
    system = fsspec.filesystem("memory")
    for file in Path(folder).iterdir():
        system.pipe_file(f"/bucket/{to}/{file.name}", file.read_bytes())


@pytest.fixture
def pictures(tmp_path):
    return formats.pictures(17)


@pytest.mark.parametrize(
    ("kind", "pattern"), [("tar", "{0..1}.tar"), ("parquet", "*.parquet"), ("tfrecord", "x.tfrecord-0000?-of-00002")]
)
def test_batches_are_those_of_the_folder(tmp_path, pictures, kind, pattern):
    tokenizer = Tokenizer.train(["picture 1", "another one"] * 4, 300)
    expected = read(open_source(formats.write("folder", tmp_path / "folder", pictures), "train", "."), tokenizer)
    formats.write(kind, tmp_path / kind, pictures)
    upload(tmp_path / kind, kind)
    source = open_source(f"{BUCKET}/{kind}/{pattern}", "train", ".")
    for each in (source, open_source(f"{BUCKET}/{kind}/{pattern}", "train", ".")):  # by the index that is kept
        assert_same(read(each, tokenizer), expected)
    assert list(source.describe(frozenset(["side"])))[4] == {"side": 12.0}


def test_a_file_that_changes_is_indexed_anew(tmp_path, pictures):
    for count in (17, 15):
        formats.write("tfrecord", tmp_path / str(count), pictures[:count])
        upload(tmp_path / str(count), "x")
        assert len(open_source(f"{BUCKET}/x/*.tfrecord-*", "train", ".")) == count


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("{bucket}/none.tar", "there is no file memory://bucket/none.tar; give tar files"),
        ("{bucket}/none/*.parquet", "there is no file memory://bucket/none/"),
        ("nosuch://bucket/x.tar", "nosuch://bucket/x.tar cannot be opened: Protocol not known: nosuch"),
        ("{bucket}/tar", "no dataset 'memory://bucket/tar'; give"),
    ],
)
def test_names_that_lead_nowhere(tmp_path, pictures, name, line):
    formats.write("tar", tmp_path / "tar", pictures)
    upload(tmp_path / "tar", "tar")
    with pytest.raises(UserError) as error:
        open_source(name.format(bucket=BUCKET), "train", ".")
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["tar", "tfrecord", "parquet"])
def test_a_bucket_without_permission(tmp_path, pictures, kind, monkeypatch):
    formats.write(kind, tmp_path / kind, pictures)
    upload(tmp_path / kind, kind)
    system = type(fsspec.filesystem("memory"))
    name = {"tar": "0.tar", "tfrecord": "x.tfrecord-00000-of-00002", "parquet": "00000.parquet"}[kind]

    def refuse(*_, **__):
        raise PermissionError("Forbidden: no storage.objects.get access")

    opened = open_source(f"{BUCKET}/{kind}/{name}", "train", ".")
    monkeypatch.setattr(system, "cat_file", refuse)
    monkeypatch.setattr(system, "open", refuse)
    line = rf"^memory://.*{name} cannot be read \(Forbidden: no storage\.objects\.get access\); give a file that can$"
    if kind != "parquet":  # whose images are on the disk by now
        with pytest.raises(UserError, match=line):
            opened[0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with pytest.raises(UserError, match=line):
        open_source(f"{BUCKET}/{kind}/{name}", "train", ".")
