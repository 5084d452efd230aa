import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_close
from unclip_jax.images.resize import resize, weights


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (2, 24, 24, 3), minval=-1, maxval=1)


def taps(size_in, size_out):
    """Pixels that the bicubic kernel weighs along both axes."""
    return 2 * 4 * max(1, -(-size_in // size_out))


@pytest.mark.parametrize("size", [3, 6, 12, 24, 48, 96])
def test_bicubic_is_that_of_jax(images, size):
    expected = jax.image.resize(images, (2, size, size, 3), "cubic", antialias=True)
    assert_close(resize(images, size), expected, terms=taps(24, size))


@pytest.mark.parametrize("size", [5, 17, 33])
def test_bicubic_is_that_of_jax_at_odd_ratios(images, size):
    # jax.image.resize places its kernels in float32, at positions of up to 24, and the kernel's slope is 1.
    expected = jax.image.resize(images, (2, size, size, 3), "cubic", antialias=True)
    assert_close(resize(images, size), expected, terms=taps(24, size), size=24)


@pytest.mark.parametrize("size", [5, 8, 12, 17, 24, 33, 48])
def test_nearest_is_that_of_jax(images, size):
    expected = jax.image.resize(images, (2, size, size, 3), "nearest")
    np.testing.assert_array_equal(resize(images, size, "nearest"), expected)


def test_area_is_the_mean_of_what_a_pixel_covers(images):
    expected = images.reshape(2, 8, 3, 8, 3, 3).mean(axis=(2, 4))
    # Nine pixels of up to 1.
    assert_close(resize(images, 8, "area"), expected, terms=9, size=1)
    ramp = jnp.arange(3.0).reshape(1, 3, 1, 1) * jnp.ones((1, 3, 3, 1))
    # Rows 0 ... 2 of height 3 in two halves: (0 + 1/2 1) / 1.5 and (1/2 1 + 2) / 1.5.
    np.testing.assert_allclose(resize(ramp, 2, "area")[0, :, 0, 0], [1 / 3, 5 / 3], rtol=1e-6)
    assert_close(resize(images, 48, "area"), resize(images, 48, "nearest"), terms=1)


@pytest.mark.parametrize("method", ["bicubic", "nearest", "area"])
@pytest.mark.parametrize("sizes", [(24, 8), (24, 7), (8, 24), (7, 24), (5, 5)])
def test_matrices_keep_a_constant_and_agree_with_resize(method, sizes):
    matrix = weights(*sizes, method)
    assert matrix.shape == sizes and matrix.dtype == np.float32
    assert_close(matrix.sum(axis=0), np.ones(sizes[1]), terms=sizes[0])
    x = jax.random.normal(jax.random.key(1), (1, sizes[0], sizes[0], 1))
    expected = matrix.T @ np.asarray(x)[0, :, :, 0] @ matrix
    assert_close(resize(x, sizes[1], method)[0, :, :, 0], expected, terms=2 * sizes[0])


def test_height_and_width_may_differ(images):
    wide = images[:, :12]
    expected = jax.image.resize(wide, (2, 6, 6, 3), "cubic", antialias=True)
    assert_close(resize(wide, 6), expected, terms=taps(24, 6), size=1)


def test_works_in_the_graph_and_keeps_the_dtype(images):
    half = images.astype(jnp.bfloat16)
    for method in ("bicubic", "nearest", "area"):
        small = jax.jit(resize, static_argnums=(1, 2))(half, 10, method)
        assert small.dtype == jnp.bfloat16 and small.shape == (2, 10, 10, 3)
        np.testing.assert_allclose(small.astype(jnp.float32), resize(half.astype(jnp.float32), 10, method), atol=0.01)


def test_the_same_size_is_the_same_image(images):
    for method in ("bicubic", "nearest", "area"):
        np.testing.assert_array_equal(resize(images, 24, method), images)
