import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from unclip_jax.core.errors import UserError
from unclip_jax.data.captioned_shapes import builder as captioned_shapes
from unclip_jax.data.captioned_shapes import render as draw
from unclip_jax.data.captioned_shapes import scenes as shapes

SIZES = {"resolution": 32, "num_train": 12, "num_test": 3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    captioned_shapes.prepare(folder, **SIZES)
    return folder


def read(builder: Any, split: str, **options: Any) -> Any:
    """A split; its type says that a builder of TFDS takes none by name."""
    return builder.as_data_source(split=split, **options)


def test_examples_are_those_of_the_generator_in_order(data_dir):
    builder = captioned_shapes.prepare(data_dir, **SIZES)
    for split, count in zip(shapes.SPLITS, (12, 3, 3), strict=True):
        source = read(builder, split)
        assert len(source) == count
        for index in range(count):
            scene, caption = shapes.example(split, index)
            stored = source[index]
            assert stored["name"].decode() == f"{split}/{index:06d}"
            assert stored["caption"].decode() == caption
            assert shapes.Scene.from_json(stored["scene"]) == scene
            np.testing.assert_array_equal(stored["image"], draw.render(scene, 32))


def test_no_tensorflow_is_needed(data_dir):
    read(captioned_shapes.prepare(data_dir, **SIZES), "train")[0]
    assert "tensorflow" not in sys.modules


def test_readable_without_the_builder(data_dir):
    path = captioned_shapes.prepare(data_dir, **SIZES).data_path
    source = read(tfds.builder_from_directory(path), "test_seen")
    assert source[1]["name"] == b"test_seen/000001"


def test_image_may_stay_encoded(data_dir):
    builder = captioned_shapes.prepare(data_dir, **SIZES)
    decoders = {"image": tfds.decode.SkipDecoding()}
    assert read(builder, "train", decoders=decoders)[0]["image"].startswith(b"\x89PNG")


def test_builds_once(data_dir, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("built again")

    monkeypatch.setattr(captioned_shapes.CaptionedShapes, "download_and_prepare", fail)
    captioned_shapes.prepare(data_dir, **SIZES)


def test_sizes_have_folders_of_their_own(data_dir):
    path = captioned_shapes.prepare(data_dir, **SIZES).data_path
    assert path.parts[-3:] == ("captioned_shapes", "32-12-3", "2.0.0")
    assert captioned_shapes.ShapesConfig.of(128, 60_000, 1_024).name == "128"
    assert captioned_shapes.ShapesConfig.of(64, 60_000, 1_024).name == "64"


def test_smaller_is_a_prefix_of_larger(data_dir, tmp_path):
    small = captioned_shapes.prepare(tmp_path, resolution=32, num_train=2, num_test=1)
    large = captioned_shapes.prepare(data_dir, **SIZES)
    for split in shapes.SPLITS:
        few, many = read(small, split), read(large, split)
        assert [example["caption"] for example in few] == [many[i]["caption"] for i in range(len(few))]


def test_interrupted_build_leaves_no_dataset(tmp_path, monkeypatch):
    def interrupt(scene, resolution):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(draw, "render", interrupt)
        with pytest.raises(KeyboardInterrupt):
            captioned_shapes.prepare(tmp_path, **SIZES)
    assert not list(tmp_path.rglob("*.array_record*"))
    assert len(read(captioned_shapes.prepare(tmp_path, **SIZES), "train")) == 12


def test_process_that_finishes_second_uses_the_first_ones_files(tmp_path, monkeypatch):
    build = captioned_shapes.CaptionedShapes._generate_examples
    raced = []

    def race(self, split, count):
        # Another process builds the same dataset while this one is drawing.
        if not raced:
            raced.append(True)
            captioned_shapes.prepare(tmp_path, **SIZES)
        yield from build(self, split, count)

    monkeypatch.setattr(captioned_shapes.CaptionedShapes, "_generate_examples", race)
    builder = captioned_shapes.prepare(tmp_path, **SIZES)
    assert raced and len(read(builder, "train")) == 12
    assert len(list(tmp_path.rglob("*train.array_record*"))) == 1


def test_failing_disk_is_not_hidden(tmp_path, monkeypatch):
    def fail(self):
        raise OSError("no space left on device")

    monkeypatch.setattr(captioned_shapes.CaptionedShapes, "download_and_prepare", fail)
    with pytest.raises(OSError, match="no space left"):
        captioned_shapes.prepare(tmp_path, **SIZES)


@pytest.mark.parametrize("field", SIZES)
def test_numbers_below_one_are_refused(field, tmp_path):
    with pytest.raises(UserError, match=f"{field} of the captioned shapes is 0"):
        captioned_shapes.prepare(tmp_path, **SIZES | {field: 0})
