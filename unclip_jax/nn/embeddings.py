"""Embeddings of the time that a network is conditioned on, in units of a step of a thousand.

(1) e(t) = [cos(t w_0) .. cos(t w_{d/2-1}), sin(t w_0) .. sin(t w_{d/2-1})],  w_k = 10000^(-k / (d/2))
                                                                  Ho et al., 2006.11239, order of ADM (2105.05233)
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.parallel.layout import shard_batch

MAX_PERIOD = 10_000


def timestep_embedding(t: Float[Array, " b"], width: int) -> Float[Array, "b d"]:
    """Equation (1), float32; `width` is even."""
    frequencies = jnp.exp(-math.log(MAX_PERIOD) * jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepMLP(nn.Module):
    """Sinusoid -> Dense -> SiLU -> Dense, from `embed_width` sinusoids to `width` features."""

    embed_width: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b d"]:
        x = timestep_embedding(t, self.embed_width).astype(self.dtype)
        x = shard_batch(nn.silu(nn.Dense(self.width, dtype=self.dtype, name="fc")(x)))
        return nn.Dense(self.width, dtype=self.dtype, name="proj")(x)
