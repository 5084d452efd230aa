import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion import KeyNoise, TapeNoise

SHAPE = (3, 4, 4, 2)


def source(seed=0, indices=(0, 1, 2)):
    return KeyNoise(key=jax.random.key(seed), indices=jnp.array(list(indices)))


def test_key_noise_is_a_function_of_key_index_and_step():
    key = jax.random.fold_in(jax.random.key(7), 5)
    noise = source(7, (2, 5, 9))
    one = (4, 4, 2)
    np.testing.assert_array_equal(noise.initial(SHAPE)[1], jax.random.normal(jax.random.fold_in(key, 0), one))
    np.testing.assert_array_equal(noise.step(3, SHAPE)[1], jax.random.normal(jax.random.fold_in(key, 4), one))


@pytest.mark.slow
def test_streams_are_independent_standard_normals():
    noise = source(indices=range(64))
    tape = jax.jit(lambda noise: TapeNoise.record(noise, (64, 16, 16), 2))(noise)
    draws = np.concatenate([tape.x_T[None], tape.steps]).reshape(3 * 64, -1)
    assert abs(draws.mean()) < 0.02 and abs(draws.std() - 1) < 0.02
    # 192 streams of 256 values: the largest of 18,000 correlations of independent ones stays near 0.28.
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert abs(correlation).max() < 0.4


@functools.partial(jax.jit, static_argnums=1)
def draw(noise, shape):
    return noise.step(2, shape)


@pytest.mark.slow
def test_an_example_does_not_depend_on_its_batch():
    together = KeyNoise(key=jax.random.key(0), indices=jnp.arange(5))
    for rows in (slice(0, 2), slice(2, 5)):
        apart = KeyNoise(key=together.key, indices=together.indices[rows])
        shape = (len(apart.indices), 5, 3)
        np.testing.assert_array_equal(draw(apart, shape), draw(together, (5, 5, 3))[rows])


def test_the_step_may_be_traced():
    noise = source()
    traced = jax.jit(lambda noise, i: noise.step(i, SHAPE))(noise, 2)
    np.testing.assert_array_equal(traced, noise.step(2, SHAPE))


def test_record_then_replay():
    noise = source()
    tape = TapeNoise.record(noise, SHAPE, 4)
    assert tape.steps.shape == (4, *SHAPE)
    np.testing.assert_array_equal(tape.initial(SHAPE), noise.initial(SHAPE))
    for i in range(4):
        np.testing.assert_array_equal(tape.step(i, SHAPE), noise.step(i, SHAPE))
    np.testing.assert_array_equal(jax.jit(lambda tape, i: tape.step(i, SHAPE))(tape, 3), tape.steps[3])


def test_sources_are_pytrees():
    noise = source()
    assert len(jax.tree.leaves(noise)) == 2
    shapes = jax.eval_shape(lambda noise: TapeNoise.record(noise, SHAPE, 2), noise)
    assert shapes.x_T.shape == SHAPE and shapes.steps.shape == (2, *SHAPE)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(noise)]
    assert paths == [".key", ".indices"]
