"""Normalisation with float32 statistics.

(1) GroupNorm(x) = gamma (x - mean_g) / sqrt(var_g + eps) + beta      Wu & He, 1803.08494

with mean and variance over the pixels and the channels of one group. Both norms use eps = 1e-5, as the networks that
this library reproduces do (flax's own default is 1e-6, which moves a ported U-Net by 5e-4).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5


class GroupNorm(nn.Module):
    """Equation (1), optionally modulated per example: y (1 + scale) + shift (ADM's AdaGN, 2105.05233, eq. 4).

    Normalisation, affine and modulation are folded into one multiply-add per pixel, which is what makes the
    layer cheap: it reads the feature map, and everything else happens on [b, c].
    """

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        scale: Float[Array, "b c"] | None = None,
        shift: Float[Array, "b c"] | None = None,
    ) -> Float[Array, "b h w c"]:
        b, _, _, c = x.shape
        gamma = self.param("scale", nn.initializers.ones, (c,))
        beta = self.param("bias", nn.initializers.zeros, (c,))
        x = x.astype(jnp.float32)

        # A product, since that is what XLA does not work out again for every pixel, as it would a broadcast.
        spread = jnp.repeat(jnp.eye(self.groups), c // self.groups, axis=1)

        def group_mean(per_channel: Array) -> Array:
            return per_channel.reshape(b, self.groups, c // self.groups).mean(-1)

        def to_channels(per_group: Array) -> Array:
            return jnp.matmul(per_group, spread, precision="highest").reshape(b, 1, 1, c)

        mean = to_channels(group_mean(x.mean((1, 2))))
        variance = group_mean(jnp.square(x - mean).mean((1, 2)))
        gain = gamma * to_channels(1 / jnp.sqrt(variance + EPSILON))
        bias = beta - mean * gain
        if scale is not None:
            modulation = 1 + scale[:, None, None, :].astype(jnp.float32)
            gain, bias = gain * modulation, bias * modulation
        if shift is not None:
            bias = bias + shift[:, None, None, :].astype(jnp.float32)
        return (x * gain + bias).astype(self.dtype)


def layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """Normalise over the last axis, statistics in float32."""
    return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name=name)
