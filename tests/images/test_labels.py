import numpy as np
import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.images.labels import GAP, LEAST_WIDTH, LETTERS, LINES, MARGIN, captioned, font, wrapped


def test_pictures_are_whole_and_words_are_below_them():
    images = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    sheet = captioned(images, ["a red circle", "", "a blue square"], columns=2)
    side = 128  # 32 px four times
    cell = side + MARGIN + LINES * (LETTERS + MARGIN)
    assert sheet.shape == (2 * (cell + GAP) - GAP, 2 * (side + GAP) - GAP, 3) and side >= LEAST_WIDTH
    for number, image in enumerate(images):
        top, left = number // 2 * (cell + GAP), number % 2 * (side + GAP)
        np.testing.assert_array_equal(sheet[top : top + side, left : left + side], image.repeat(4, 0).repeat(4, 1))
        words = sheet[top + side : top + cell, left : left + side]
        assert (words < 128).any() == (number != 1)


@pytest.mark.parametrize(
    "text",
    ["a", "a red circle above a blue square " * 9, "x" * 3000, "a\n b\t\x07c", "\u4e2d" * 99],
    ids=["short", "long", "one word", "no words", "boxes"],
)
def test_lines_fit_and_say_what_they_leave_out(text):
    lines = wrapped(text, 90, 3)
    assert 1 <= len(lines) <= 3 and all(font().getlength(line) <= 90 for line in lines)
    shown, whole = "".join(lines).replace(" ", ""), "".join(c for c in text if c.isprintable()).replace(" ", "")
    assert shown == whole or (shown.endswith("...") and whole.startswith(shown[:-3]))
    assert all(not line.startswith(" ") and line.isprintable() for line in lines)


def test_no_words_are_no_lines():
    assert wrapped("", 90, 3) == wrapped(" \n", 90, 3) == []


def test_a_caption_for_each():
    with pytest.raises(UserError, match="1 pictures and 0 captions"):
        captioned([np.zeros((2, 2, 3), np.uint8)], [])
