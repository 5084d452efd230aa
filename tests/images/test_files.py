from pathlib import Path

import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.images.files import image_files, stems


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
