import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.editing.embeddings import slerp
from unclip_jax.editing.interpolation import equal_change_positions, frame_positions, interpolate

RNG = np.random.default_rng(0)


def vectors(n, *shape, length=1.0):
    x = RNG.normal(size=(n, *shape)).astype(np.float32)
    norms = np.linalg.norm(x.reshape(n, -1), axis=1).reshape(n, *[1] * len(shape))
    return jnp.asarray(length * x / norms)


def test_slerp_goes_along_the_great_circle():
    a, b = vectors(5, 16), vectors(5, 16)
    omega = np.arccos(np.sum(np.asarray(a) * np.asarray(b), axis=1))
    for theta in (0.0, 0.3, 0.5, 1.0):
        way = slerp(a, b, theta)
        np.testing.assert_allclose(np.linalg.norm(way, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(np.arccos(np.sum(np.asarray(way * a), axis=1)), theta * omega, atol=2e-3)
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-6)


def test_slerp_keeps_the_length_of_noise():
    a, b = (jnp.asarray(RNG.normal(size=(4, 8, 8, 3)), jnp.float32) for _ in range(2))
    assert 0.9 < float(jnp.std(slerp(a, b, 0.5))) < 1.1
    assert float(jnp.std((a + b) / 2)) < 0.8


def test_slerp_of_the_same_and_of_each_rows_own_theta():
    a, b = vectors(3, 8, length=2.0), vectors(3, 8, length=4.0)
    np.testing.assert_allclose(slerp(a, a, 0.4), a, atol=1e-5)
    way = slerp(a, b, jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), [2, 3, 4], rtol=1e-5)
    np.testing.assert_allclose(way[1], slerp(a, b, 0.5)[1], atol=1e-6)


def test_a_path_through_three_points_meets_all_of_them():
    points, positions = vectors(3, 8), frame_positions(3, 4)
    path = interpolate(points, positions)
    assert len(path) == 9
    np.testing.assert_allclose(path[::4], points, atol=1e-6)
    with pytest.raises(ValueError, match="two points and a frame; got 1 and 4"):
        frame_positions(1, 4)


def test_positions_of_equal_change():
    """A picture that changes at one place alone, and from the second point on by even steps."""
    dense = np.asarray(frame_positions(3, 20))
    level = np.where(dense < 1, 200 / (1 + np.exp(-40 * (dense - 0.6))), 200 - 100 * (dense - 1))
    images = np.broadcast_to(level[:, None, None, None], (len(level), 2, 2, 3)).astype(np.uint8)
    positions = np.asarray(equal_change_positions(dense, images, 5))
    assert len(positions) == 11
    assert positions[0] == 0 and positions[5] == pytest.approx(1) and positions[10] == pytest.approx(2)
    seen = np.interp(positions, dense, level)
    steps = np.abs(np.diff(seen))
    assert steps[:5].max() < 1.2 * steps[:5].mean() and steps[5:].max() < 1.2 * steps[5:].mean()
    # By theta the first part jumps.
    assert np.abs(np.diff(np.interp(frame_positions(2, 5), dense, level))).max() > 2.4 * 200 / 5


def test_nothing_changes():
    dense = np.asarray(frame_positions(2, 4))
    np.testing.assert_allclose(equal_change_positions(dense, np.zeros((5, 2, 2, 3), np.uint8), 2), [0, 0.5, 1])
