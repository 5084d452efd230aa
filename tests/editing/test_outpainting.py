import numpy as np
import pytest

from unclip_jax.editing.outpainting import Margins, windows


def test_windows_beside_an_image_and_below_it():
    margins = Margins(left=5, right=2, bottom=3)
    beside = [(7, 0), (1, 0), (0, 0)]
    assert windows(8, margins) == [*beside, (0, 3), (4, 3), (7, 3)]
    assert windows(8, Margins(top=9)) == [(0, 5), (0, 1), (0, 0)]


@pytest.mark.parametrize("size", [2, 7, 8, 64])
@pytest.mark.parametrize("margins", [(1, 0, 0, 0), (5, 0, 2, 3), (8, 8, 8, 8), (0, 40, 3, 1), (0, 0, 0, 100)])
def test_each_window_has_half_of_it_known_and_something_to_draw(size, margins):
    margins = Margins(**dict(zip(("left", "top", "right", "bottom"), margins, strict=True)))
    known = np.zeros((margins.top + size + margins.bottom, margins.left + size + margins.right), bool)
    known[margins.top : margins.top + size, margins.left : margins.left + size] = True
    for left, top in windows(size, margins):
        here = known[top : top + size, left : left + size]
        assert here.shape == (size, size)
        assert here.mean() >= size // 2 / size and not here.all()
        here[:] = True
    assert known.all()


@pytest.mark.parametrize("margins", [{}, {"left": -1, "top": 3}])
def test_margins_that_make_no_sense(margins):
    with pytest.raises(ValueError, match="margins must be at least 0"):
        Margins(**margins)
