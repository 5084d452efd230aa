from pathlib import Path

import numpy as np
import pytest

from sample.common import image_files, in_batches, stems
from unclip_jax.core.errors import UserError


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
def test_batches_have_one_size_and_every_row_is_kept(batch_size):
    sizes = set()

    def call(rows):
        sizes.add(len(rows))
        return rows * 10

    np.testing.assert_array_equal(in_batches(call, 5, batch_size), [0, 10, 20, 30, 40])
    assert sizes == {min(batch_size, 5)}


@pytest.mark.parametrize("only", range(5))
def test_one_row_comes_from_the_batch_it_is_always_in(only):
    seen = []

    def call(rows):
        seen.append(rows.tolist())
        return rows

    assert in_batches(call, 5, 2, only).tolist() == [only]
    assert seen == [[[0, 1], [2, 3], [4, 4]][only // 2]]


def test_folders_stand_for_the_images_in_them(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    assert image_files([Path("z.png"), tmp_path]) == [Path("z.png"), tmp_path / "a.jpg", tmp_path / "b.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        image_files([tmp_path / "empty"])
    with pytest.raises(UserError, match="no image given"):
        image_files([])


def test_names_are_numbered_where_two_are_alike():
    assert stems([Path("x/a.png"), Path("x/b.jpg")]) == ["a", "b"]
    assert stems([Path("x/a.png"), Path("y/a.jpg")]) == ["0000_a", "0001_a"]
