"""Attention on a CPU.

XLA's own leaves the heads apart in memory and divides all of the softmax, before the product with the values: half the
speed, or less.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

MASKED = -1e30
"""A logit that no weight comes from; finite, so that a row without any key is a mean and not NaN."""
LARGE = 2**18
"""Logits of a head from which it takes one head at a time, so that they stay in the cache."""


def attention(
    query: Float[Array, "b q k d"],
    key: Float[Array, "b s k d"],
    value: Float[Array, "b s k d"],
    mask: Bool[Array, "#b 1 #q s"] | None,
) -> Float[Array, "b q k d"]:
    """Compute equation (1) of `unclip_jax.nn.attention` head by head."""
    b, q, k, d = query.shape
    s = key.shape[1]
    if mask is None:
        mask = jnp.ones((1, 1, 1, s), bool)
    masks = jnp.repeat(jnp.broadcast_to(mask[:, 0], (b, mask.shape[2], s)), k, axis=0)
    queries, keys, values = (x.swapaxes(1, 2).reshape(b * k, -1, d) for x in (query, key, value))

    def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
        logits = jnp.matmul(query, key.T, preferred_element_type=jnp.float32)
        logits = jnp.where(mask, logits * d**-0.5, MASKED)
        weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
        out = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return (out / weights.sum(-1, keepdims=True)).astype(value.dtype)

    if q * s < LARGE:
        out = jax.vmap(attend)(queries, keys, values, masks)
    else:
        # In batches of one: as a product without a batch dimension the logits would pass for a layer's output, which
        # `unclip_jax.nn.remat` keeps.
        out = lax.map(lambda head: attend(*head), (queries, keys, values, masks), batch_size=1)
    return out.reshape(b, k, q, d).swapaxes(1, 2)
