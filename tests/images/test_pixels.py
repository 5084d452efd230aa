import jax
import numpy as np
import pytest
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.images.pixels import grid, to_float, to_uint8
from unclip_jax.images.png import read_text, save_png

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def test_every_uint8_value_survives_the_round_trip():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    floats = to_float(values)
    assert floats.dtype == np.float32
    assert floats.min() == -1 and floats.max() == 1
    np.testing.assert_array_equal(to_uint8(floats), values)


def test_to_float_is_the_same_under_jit():
    np.testing.assert_allclose(jax.jit(to_float)(PIXELS), to_float(PIXELS), rtol=0, atol=1e-7)


def test_to_uint8_clips_and_rounds():
    x = np.array([-3.0, -1.0, 0.0, 0.2 / 127.5, 0.8 / 127.5, 1.0, 7.0], np.float32).reshape(1, 7, 1)
    np.testing.assert_array_equal(to_uint8(x).ravel(), [0, 0, 128, 128, 128, 255, 255])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_to_uint8_refuses_what_is_not_finite(bad):
    with pytest.raises(UserError, match="not finite"):
        to_uint8(np.full((1, 1, 3), bad, np.float32))


@pytest.mark.parametrize(
    ("num_images", "columns", "shape"),
    [(1, None, (2, 3)), (4, None, (6, 8)), (5, None, (6, 13)), (3, 1, (10, 3)), (2, 8, (2, 8))],
)
def test_grid_shape(num_images, columns, shape):
    sheet = grid(np.zeros((num_images, 2, 3, 3), np.uint8), columns)
    assert sheet.shape == (*shape, 3)


def test_grid_places_images_row_by_row_on_white():
    tiles = np.stack([np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = grid(tiles, 2)
    np.testing.assert_array_equal(sheet[:2, 5:], tiles[1])
    np.testing.assert_array_equal(sheet[4:, :3], tiles[2])
    assert (sheet[2:4] == 255).all() and (sheet[4:, 3:] == 255).all()


def test_png_carries_pixels_and_text(tmp_path):
    path = tmp_path / "out" / "x.png"
    text = {"prompt": "ein roter Kreis, \u5706", "settings": '{"seed": 0}'}
    save_png(path, PIXELS, text)
    np.testing.assert_array_equal(pixels_of(path), PIXELS)
    assert read_text(path) == text
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    save_png(path, PIXELS, {})

    def full_disk(self, target, **_):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_png(path, 255 - PIXELS, {})
    np.testing.assert_array_equal(pixels_of(path), PIXELS)
    assert list(tmp_path.iterdir()) == [path]


def test_save_png_wants_a_png_name(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.png"):
        save_png(tmp_path / "x.jpg", PIXELS, {})


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"no file .*absent\.png"):
        read_text(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UserError, match=r"cannot read .*text\.png as an image"):
        read_text(tmp_path / "text.png")
    save_png(tmp_path / "whole.png", np.zeros((64, 64, 3), np.uint8), {"prompt": "x"})
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"cannot read .*cut\.png as an image"):
        read_text(tmp_path / "cut.png")
