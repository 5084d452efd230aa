"""The random numbers of a training example: independent streams folded from its own key.

(1) stream_i = fold_in(key, i),   i by name below

The numbers are part of what a run is: a new stream takes a new one.
"""

import functools

import jax
from jaxtyping import Array, Bool, Float, Key

TIME, NOISE, DROP_Z_I, DROP_TEXT, DEGRADE, DROPOUT, MASK = 0, 1, 2, 3, 4, 5, 6


@functools.partial(jax.vmap, in_axes=(0, None))
def stream(key: Key[Array, ""], index: int) -> Key[Array, ""]:
    """Compute equation (1), for every key of a batch."""
    return jax.random.fold_in(key, index)


def random_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, " b *dims"]:
    """Sample standard normal noise, one array of `shape` per example."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(stream(keys, NOISE))


def random_drop(keys: Key[Array, " b"], rate: float, index: int) -> Bool[Array, " b"]:
    """Sample True with probability `rate`, one per example, from the stream `index`."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, rate))(stream(keys, index))
