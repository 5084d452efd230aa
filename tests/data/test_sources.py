import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.data.config import DataConfig
from unclip_jax.data.records import Source
from unclip_jax.data.sources import open_source


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    return lambda split: open_source("captioned_shapes", split, data_dir, resolution=32, num_train=6, num_test=2)


def test_captioned_shapes_by_name(shapes):
    train, test = shapes("train"), shapes("test_seen")
    assert isinstance(train, Source)
    assert len(train) == 6 and len(test) == 2 and len(shapes("train[:4]")) == 4
    record = train[5]
    assert record.image.shape == (32, 32, 3) and record.image.dtype == np.uint8
    assert record.image.std() > 0
    assert len(record.captions) == 1 and record.captions[0]
    assert record.name.startswith("train/") and test[0].name.startswith("test_seen/")
    assert len({train[i].name for i in range(6)}) == 6


def test_captioned_shapes_can_be_pickled(shapes):
    train = shapes("train")
    again = pickle.loads(pickle.dumps(train))
    assert len(again) == 6 and again[3].captions == train[3].captions
    np.testing.assert_array_equal(again[3].image, train[3].image)


def test_captioned_shapes_without_that_split(shapes):
    with pytest.raises(UserError, match="no split 'valid'; use one of .*train"):
        shapes("valid")


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(name):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
        file.with_suffix(".txt").write_text("a photo")
        return tmp_path / "photos"

    return write


def test_a_folder_is_all_train(write, tmp_path):
    folder = write("a.png")
    source = open_source(str(folder), "train", tmp_path)
    assert isinstance(source, Source)
    assert len(source) == 1 and source[0].captions == ("a photo",)
    with pytest.raises(UserError, match="has no split 'test'; put its images into the folder"):
        open_source(folder, "test", tmp_path)


def test_subfolders_are_splits_and_do_not_mix(write, tmp_path):
    folder = write("test/b.png")
    with pytest.raises(UserError, match="has no split 'train'"):
        open_source(folder, "train", tmp_path)
    write("train/a.png")
    assert [open_source(folder, split, tmp_path)[0].name for split in ("train", "test")] == ["a.png", "b.png"]


def test_limits_of_a_config_reach_the_folder(write):
    config = DataConfig(source=str(write("a.png")), batch_size=1)
    assert len(config.open(captions=True)) == 1
    with pytest.raises(UserError, match=r"a\.png: its shorter side has 8 px, fewer than min_side 9"):
        dataclasses.replace(config, min_side=9).open(captions=True)
    with pytest.raises(UserError, match="max_bad_share is 2"):
        dataclasses.replace(config, max_bad_share=2.0).open(captions=True)


def test_what_a_split_does_not_read_is_said(write, tmp_path, capsys):
    folder = write("train/a.png")
    open_source(folder, "train", tmp_path)
    assert capsys.readouterr().err == ""
    for name in ("test/b.png", "val/c.png", "d.png", ".hidden/e.png"):
        write(name)
    (folder / "metadata.csv").write_text("file_name,text\ntrain/a.png,a\n")
    open_source(folder, "train", tmp_path)
    line = f"{folder}: train/ alone is read, not test/, val/, metadata.csv, 1 images beside it\n"
    assert capsys.readouterr().err == line


def test_a_validation_set_that_is_trained_on_is_said(write, tmp_path, capsys):
    write("val/a.png")
    assert len(open_source(write("b.png"), "train", tmp_path)) == 2
    assert "has no train/, so all of it is read, and val/ too\n" in capsys.readouterr().err


def test_options_reach_the_folder(write, tmp_path):
    folder = write("a.png")
    (folder / "a.txt").unlink()
    assert open_source(folder, "train", tmp_path, captions=False)[0].captions == ("",)


@pytest.mark.parametrize("name", ["coco", "", "~no-such-user", "x" * 5000])
def test_an_unknown_name_says_what_is_possible(tmp_path, name):
    with pytest.raises(UserError, match="; give captioned_shapes, a folder of images, files as in ") as raised:
        open_source(name, "train", tmp_path)
    assert str(raised.value).startswith(f"no dataset '{name[:500]}")
