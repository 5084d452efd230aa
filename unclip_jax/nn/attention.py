"""Multi-head attention: one wrapper over `jax.nn.dot_product_attention` and the three layers that use it.

(1) Attention(Q, K, V) = softmax(Q K^T / sqrt(d) + mask) V          Vaswani et al., 1706.03762, eq. 1

`ContextAttention` is GLIDE's (2112.10741): keys and values of the context tokens are concatenated to those
of the pixels, so that one softmax weighs text against image.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from unclip_jax.nn.cpu import attention as cpu
from unclip_jax.nn.norms import GroupNorm
from unclip_jax.parallel.layout import shard_batch

Implementation = Literal["xla", "cudnn"]


def attention(
    query: Float[Array, "b q k d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    mask: Bool[Array, "#b 1 #q s"] | None = None,
    implementation: Implementation = "xla",
) -> Float[Array, "b q k d"]:
    """Compute equation (1) over k heads of width d; `mask` is True where a query may look. Softmax in float32."""

    if implementation == "cudnn":
        return _attention_cudnn(query, key, value, mask)

    def plain(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")

    return lax.platform_dependent(query, key, value, mask, cpu=cpu.attention, default=plain)


def _attention_cudnn(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Run cuDNN's attention, which needs one row of a mask for each query, and for its gradients even lengths."""
    q, s = query.shape[1], key.shape[1]
    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], 1, q, s))
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, q % 2), (0, s % 2)))
        query = jnp.pad(query, ((0, 0), (0, q % 2), (0, 0), (0, 0)))
        key, value = (jnp.pad(x, ((0, 0), (0, s % 2), (0, 0), (0, 0))) for x in (key, value))
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")[:, :q]


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, with separate q, k, v and out projections."""

    num_heads: int
    dtype: jnp.dtype
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "#b 1 #n n"] | None = None) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        head_shape = (*x.shape[:2], self.num_heads, width // self.num_heads)
        query, key, value = (
            nn.Dense(width, dtype=self.dtype, name=name)(x).reshape(head_shape) for name in ("query", "key", "value")
        )
        out = attention(query, key, value, mask, self.implementation)
        return nn.Dense(width, dtype=self.dtype, name="out")(out.reshape(x.shape))


class ContextAttention(nn.Module):
    """Residual attention of a feature map to itself and to context tokens (GLIDE's AttentionBlock).

    The output projection starts at zero, so that a fresh block is the identity.
    """

    head_channels: int
    dtype: jnp.dtype
    groups: int = 32
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b n e"] | None = None,
        context_mask: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        heads = c // self.head_channels

        def split(features: Array) -> Array:
            return features.reshape(b, features.shape[1], heads, self.head_channels)

        pixels = GroupNorm(self.groups, dtype=self.dtype, name="norm")(x).reshape(b, h * w, c)
        query, key, value = (
            split(nn.Dense(c, dtype=self.dtype, name=name)(pixels)) for name in ("query", "key", "value")
        )
        mask = None
        if context is not None:
            context_key, context_value = (
                split(nn.Dense(c, dtype=self.dtype, name=name)(context)) for name in ("context_key", "context_value")
            )
            key = jnp.concatenate([context_key, key], axis=1)
            value = jnp.concatenate([context_value, value], axis=1)
            if context_mask is not None:
                mask = jnp.pad(context_mask, ((0, 0), (0, h * w)), constant_values=True)[:, None, None, :]
        out = attention(query, key, value, mask, self.implementation).reshape(b, h * w, c)
        out = nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(out)
        return shard_batch(x + out.reshape(x.shape))
