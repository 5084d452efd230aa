"""Dropout that belongs to an example, not to its place in a batch."""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(
    x: Float[Array, "b ..."], rate: float, keys: Key[Array, " b"] | None, path: tuple[str, ...]
) -> Float[Array, "b ..."]:
    """Zero each feature with probability `rate` and scale the rest by 1 / (1 - rate).

    `keys` holds one key per example, so that a mask does not change with batch size, microbatch or device;
    None means evaluation. `path` is the calling module's, which gives every layer a mask of its own.
    """
    if keys is None or rate == 0:
        return x
    salt = zlib.crc32("/".join(path).encode())

    def mask(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, salt), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(mask)(keys), x / (1 - rate), 0).astype(x.dtype)
