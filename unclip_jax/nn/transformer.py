"""The pre-LN Transformer shared by CLIP's towers, the prior and the decoder's caption encoder.

(1) x = x + Attention(LN(x));   x = x + MLP(LN(x))            GPT-2's order (Radford et al., 2019)
(2) quick_gelu(x) = x sigmoid(1.702 x)                        the activation of OpenAI's CLIP weights
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unclip_jax.nn.attention import Implementation, SelfAttention
from unclip_jax.nn.norms import layer_norm
from unclip_jax.nn.remat import Remat, rematerialised
from unclip_jax.parallel.layout import shard_batch

Activation = Literal["gelu", "quick_gelu"]


def activate(x: Float[Array, "..."], activation: Activation) -> Float[Array, "..."]:
    """Compute the exact (erf) GELU, or equation (2)."""
    if activation == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=False)


def causal_mask(length: int) -> Bool[Array, "1 1 n n"]:
    """Return a mask, True where key <= query."""
    return jnp.tril(jnp.ones((1, 1, length, length), dtype=bool))


class Block(nn.Module):
    """Equation (1), the MLP `mlp_width` wide: 4 times the sequence's width for None."""

    num_heads: int
    activation: Activation
    mlp_width: int | None
    dtype: jnp.dtype
    implementation: Implementation

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "#b 1 #n n"] | None) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        h = layer_norm(self.dtype, "norm_attention")(x)
        x = shard_batch(x + SelfAttention(self.num_heads, self.dtype, self.implementation, name="attention")(h, mask))
        h = layer_norm(self.dtype, "norm_mlp")(x)
        h = activate(nn.Dense(self.mlp_width or 4 * width, dtype=self.dtype, name="fc")(h), self.activation)
        return shard_batch(x + nn.Dense(width, dtype=self.dtype, name="proj")(h))


class Transformer(nn.Module):
    """`num_layers` blocks, one after another, or scanned with their parameters stacked on a leading axis.

    `scan` keeps compile time constant in depth; `remat` recomputes each block in the backward pass, all of it or all
    but its products, so that memory grows by one or nine activations per block instead of about fifteen.
    """

    num_layers: int
    num_heads: int
    mlp_width: int | None = None
    activation: Activation = "gelu"
    dtype: jnp.dtype = jnp.dtype("float32")
    remat: Remat = False
    scan: bool = False
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "#b 1 #n n"] | None = None) -> Float[Array, "b n d"]:
        kind = rematerialised(Block, self.remat, prevent_cse=not self.scan)

        def block(name: str) -> Block:
            return kind(self.num_heads, self.activation, self.mlp_width, self.dtype, self.implementation, name=name)

        if not self.scan:
            for i in range(self.num_layers):
                x = block(f"block_{i}")(x, mask)
            return x
        scanned = nn.scan(
            lambda layer, carry, _: (layer(carry, mask), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.num_layers,
        )
        return scanned(block("blocks"), x, None)[0]
