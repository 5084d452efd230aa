"""Changing what an image shows by saying what changes (2204.06125, section 3.3).

(1) z_d = unit(z_t(after) - z_t(before))
(2) z_i(theta) = slerp(z_i, |z_i| z_d, theta),   theta from 0.25 to 0.5 in the paper

decoded from the image's own x_T throughout. "before" describes the image as it is, or is empty. The decoder is
conditioned on no caption, or on `after`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core.errors import UserError
from unclip_jax.editing.embeddings import embed_captions, slerp
from unclip_jax.systems.system import System


def text_diff(
    system: System,
    z_i: Float[Array, "b d"],
    before: list[str],
    after: list[str],
    theta: Float[Array, " b"] | float,
) -> Float[Array, "b d"]:
    """Compute equation (2), one pair of captions for each row.

    Raises UserError where both captions are the same to CLIP, and for a bundle that reads none.
    """
    difference = embed_captions(system, after) - embed_captions(system, before)
    length = jnp.linalg.norm(difference, axis=1, keepdims=True)
    if not bool(jnp.all(length > 1e-6)):
        same = after[int(jnp.argmin(length[:, 0]))]
        raise UserError(f'before and after say the same, "{same}"; say what is to change')
    return slerp(z_i, jnp.linalg.norm(z_i, axis=1, keepdims=True) * difference / length, theta)
