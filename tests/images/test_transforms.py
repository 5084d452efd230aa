import io

import numpy as np
import pytest
from PIL import Image

from unclip_jax.images import transforms
from unclip_jax.images.transforms import BrokenImageError, fit, read_image, resize, square_crop, to_rgb


def encode(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_rgb(height=12, width=17):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_an_rgb_png_is_read_as_it_is(tmp_path):
    pixels = random_rgb()
    (tmp_path / "ü ☂.png").write_bytes(encode(Image.fromarray(pixels)))
    for file in (tmp_path / "ü ☂.png", str(tmp_path / "ü ☂.png"), encode(Image.fromarray(pixels))):
        np.testing.assert_array_equal(np.array(read_image(file)), pixels)


def test_transparency_is_composited_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 128, 255
    grey = rgba[..., [0, 3]]
    for image in (Image.fromarray(rgba), Image.fromarray(grey)):
        assert image.mode in ("RGBA", "LA")
        np.testing.assert_array_equal(np.array(read_image(encode(image)))[0, :, 0], [255, 127, 0])


def test_transparent_colour_of_a_palette_greyscale_or_rgb_is_white():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([200, 0, 0, 0, 0, 100])
    black_and_grey = np.array([[0, 60]], np.uint8)
    cases = [
        (encode(palette, transparency=0), [[255, 255, 255], [0, 0, 100]]),
        (encode(palette, transparency=b"\xff\x00"), [[200, 0, 0], [255, 255, 255]]),
        (encode(palette, "gif", transparency=0), [[255, 255, 255], [0, 0, 100]]),
        (encode(Image.fromarray(black_and_grey), transparency=0), [[255] * 3, [60] * 3]),
        (
            encode(Image.fromarray(black_and_grey).convert("RGB"), transparency=(0, 0, 0)),
            [[255] * 3, [60] * 3],
        ),
    ]
    for file, expected in cases:
        np.testing.assert_array_equal(np.array(read_image(file))[0], expected)


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for file in (encode(Image.fromarray(values)), encode(Image.fromarray(values), "tiff")):
        np.testing.assert_array_equal(np.array(read_image(file))[0, :, 1], [0, 1, 128, 255])
    as_int32 = Image.fromarray(values.astype(np.int32))
    assert as_int32.mode == "I"
    np.testing.assert_array_equal(np.array(to_rgb(as_int32))[0, :, 1], [0, 1, 128, 255])


def test_floats_are_taken_in_zero_to_one():
    file = encode(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "tiff")
    np.testing.assert_array_equal(np.array(read_image(file))[0, :, 2], [0, 128, 255])
    for values in ([[0.0, 300.0]], [[float("nan"), 0.0]]):
        with pytest.raises(BrokenImageError, match="x.tif: an image of mode F must hold numbers in"):
            read_image(encode(Image.fromarray(np.array(values, np.float32)), "tiff"), name="x.tif")
    with pytest.raises(BrokenImageError, match="16-bit"):
        to_rgb(Image.fromarray(np.array([[0, 70_000]], np.int32)))


def test_bilevel_greyscale_and_cmyk():
    for mode in ("1", "L"):
        white = np.array(read_image(encode(Image.new(mode, (2, 2), 255 if mode == "L" else 1))))
        np.testing.assert_array_equal(white, np.full((2, 2, 3), 255))
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    pixel = np.array(read_image(encode(cyan, "jpeg", quality=100)))[4, 4].astype(int)
    assert abs(pixel - [0, 255, 255]).max() <= 3


def test_exif_turns_the_image_upright():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, :] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows of the file are columns of the scene, from the right
    upright = np.array(read_image(encode(Image.fromarray(pixels), exif=exif)))
    assert upright.shape == (6, 4, 3)
    np.testing.assert_array_equal(upright[:, -1], 255)
    np.testing.assert_array_equal(upright[:, :-1], 0)


def test_only_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    file = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(np.array(read_image(file))[0, 0], [255, 0, 0])


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "tiff", "bmp"])
def test_a_truncated_file_is_an_error_in_one_line(kind):
    whole = encode(Image.fromarray(random_rgb(64, 64)), kind)
    with pytest.raises(BrokenImageError) as caught:
        read_image(whole[: len(whole) // 2], name="cut.file")
    assert str(caught.value).startswith("cut.file: ") and "\n" not in str(caught.value)


def test_what_is_no_image_is_an_error(tmp_path):
    for content in (b"", b"hello", b"<html>not found</html>"):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(BrokenImageError, match=r"x\.jpg: not an image"):
            read_image(tmp_path / "x.jpg")
    with pytest.raises(BrokenImageError, match="none.png: cannot be read"):
        read_image(tmp_path / "none.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(transforms, "MAX_IMAGE_PIXELS", 100)
    read_image(encode(Image.new("RGB", (10, 10))))
    with pytest.raises(BrokenImageError, match="limit of 100 pixels"):
        read_image(encode(Image.new("RGB", (10, 11))))


def test_a_decompression_bomb_is_refused():
    bomb = encode(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(BrokenImageError, match="limit of 89,478,485 pixels"):
        read_image(bomb)


def test_square_crop_is_centred():
    pixels = random_rgb(5, 9)
    np.testing.assert_array_equal(np.array(square_crop(Image.fromarray(pixels))), pixels[:, 2:7])
    pixels = random_rgb(9, 4)
    np.testing.assert_array_equal(np.array(square_crop(Image.fromarray(pixels))), pixels[2:6])


def test_shrinking_is_antialiased():
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    small = np.array(resize(Image.fromarray(checkers.astype(np.uint8)), 8)).astype(int)
    assert abs(small - 127.5).max() < 2


@pytest.mark.parametrize("shape", [(12, 17), (400, 3), (1, 1), (16, 16)])
def test_fit_takes_any_shape(shape):
    fitted = fit(Image.fromarray(random_rgb(*shape)), 16)
    assert fitted.shape == (16, 16, 3) and fitted.dtype == np.uint8
