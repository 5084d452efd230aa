"""The residual block of ADM (Dhariwal & Nichol, 2105.05233, appendix A), after BigGAN's.

(1) h = conv(resample(SiLU(GN(x))))
(2) h = conv(dropout(SiLU(GN(h) (1 + s(e)) + b(e))))      "scale_shift", e = the timestep (and image) embedding
(2')h = conv(dropout(SiLU(GN(h + b(e)))))                 "additive"
(3) y = skip(resample(x)) + h

`resample` is nearest-neighbour doubling, 2x2 averaging or nothing; the last convolution starts at zero.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from unclip_jax.nn.conv import Conv3x3
from unclip_jax.nn.dropout import dropout
from unclip_jax.nn.norms import GroupNorm
from unclip_jax.parallel.layout import shard_batch

Resample = Literal["none", "up", "down"]
Conditioning = Literal["scale_shift", "additive"]


def resample(x: Float[Array, "b h w c"], how: Resample) -> Float[Array, "b H W c"]:
    """Double by repetition, halve by averaging, or leave alone."""
    b, h, w, c = x.shape
    if how == "up":
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
        return x.reshape(b, 2 * h, 2 * w, c)
    if how == "down":
        return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return x


class ResBlock(nn.Module):
    """Equations (1) to (3)."""

    features: int
    dtype: jnp.dtype
    conditioning: Conditioning = "scale_shift"
    resample: Resample = "none"
    dropout_rate: float = 0.0
    groups: int = 32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        embedding: Float[Array, "b e"],
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b H W f"]:
        h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_in")(x))
        h = Conv3x3(self.features, dtype=self.dtype, name="conv_in")(resample(h, self.resample))

        modulates = self.conditioning == "scale_shift"
        modulation = nn.Dense((1 + modulates) * self.features, dtype=self.dtype, name="embedding")(nn.silu(embedding))
        norm_out = GroupNorm(self.groups, dtype=self.dtype, name="norm_out")
        if modulates:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = norm_out(h, scale, shift)
        else:
            h = norm_out(h + modulation[:, None, None, :])
        h = dropout(nn.silu(h), self.dropout_rate, dropout_keys, self.path)
        h = Conv3x3(self.features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv_out")(h)

        skip = resample(x, self.resample)
        if skip.shape[-1] != self.features:
            skip = nn.Dense(self.features, dtype=self.dtype, name="skip")(skip)
        return shard_batch(skip + h)
