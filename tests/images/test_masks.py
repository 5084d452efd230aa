import jax
import numpy as np
import pytest

from unclip_jax.images.masks import random_masks

pytestmark = pytest.mark.usefixtures("quick_compile")


def masks(count, size, whole, seed=0):
    return np.asarray(random_masks(jax.random.split(jax.random.key(seed), count), size, whole))


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 32])
def test_there_is_always_something_to_fill_and_something_known(size):
    drawn = masks(500, size, 0.0)
    assert drawn.shape == (500, size, size)
    parts = drawn.mean(axis=(1, 2))
    assert parts.min() > 0 and parts.max() < 1
    # Little and much of an image, in places all over it.
    assert np.quantile(parts, 0.1) < 0.3 and np.quantile(parts, 0.9) > 0.7
    assert drawn.mean(axis=0).min() > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("whole", [0.25, 1.0])
def test_some_are_the_whole_image(whole):
    share = masks(2000, 16, whole).all(axis=(1, 2)).mean()
    assert abs(share - whole) <= 4 * np.sqrt(whole * (1 - whole) / 2000)


@pytest.mark.slow
def test_a_mask_is_its_keys_own():
    keys = jax.random.split(jax.random.key(3), 6)
    order = np.array([4, 1, 0])
    np.testing.assert_array_equal(random_masks(keys[order], 16, 0.2), random_masks(keys, 16, 0.2)[order])
    assert len({mask.tobytes() for mask in masks(100, 16, 0.0)}) > 95


@pytest.mark.slow
def test_every_kind_comes():
    """Boxes are as wide at the top as at the bottom, what is left of a frame is a box, a stroke is neither."""

    def is_box(mask):
        rows, columns = mask.any(1), mask.any(0)
        return bool((mask == rows[:, None] & columns[None]).all()) and not mask.all()

    kinds = {"one box": 0, "frame": 0, "other": 0}
    for mask in masks(300, 24, 0.0):
        kinds["one box" if is_box(mask) else "frame" if is_box(~mask) else "other"] += 1
    assert kinds["one box"] > 20 and 60 < kinds["frame"] < 140 and kinds["other"] > 100
