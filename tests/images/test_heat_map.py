import numpy as np

from unclip_jax.images.heat_map import CELL, heat_map


def test_the_largest_is_the_brightest_and_stands_where_it_should():
    values = np.linspace(-0.5, 0.5, 9).reshape(3, 3)
    pictures = np.full((3, 8, 8, 3), 200, np.uint8)
    sheet = heat_map(values, ["a", "b", "c"], pictures, rows="captions", columns="images")
    bare = heat_map(values, ["a", "b", "c"], None, rows="captions", columns="images")
    assert len(sheet) - len(bare) > CELL and sheet.shape[1] == bare.shape[1]
    # The entries are the last rows of either, between words and bar.
    entries = bare[-3 * CELL - 3 : -3, 243 : 243 + 3 * CELL].reshape(3, CELL, 3, CELL, 3)
    assert (entries == entries[:, :1, :, :1]).all()
    bright = entries[:, 0, :, 0].sum(-1)
    assert (np.diff(bright.ravel().astype(int)) > 0).all()
    assert (entries[0, 0, 0, 0] == (12, 18, 60)).all() and (entries[2, 0, 2, 0] == (255, 232, 130)).all()


def test_equal_values_are_drawn_too():
    assert heat_map(np.ones((2, 2)), ["", ""], None, rows="r", columns="c").ndim == 3
