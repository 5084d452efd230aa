"""Images and captions as points of CLIP's space, and the path between two of them (2204.06125, section 3).

(1) slerp(a, b, theta) = |.| (sin((1 - theta) omega) a / |a| + sin(theta omega) b / |b|) / sin omega,
    cos omega = <a, b> / |a| |b|,   |.| = (1 - theta) |a| + theta |b|

(Shoemake, 1985.) For unit vectors, as the paper has them, |.| = 1. Between two samples of N(0, I) in many dimensions,
which all have about the same length, it stays among such samples, as their mean would not.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unclip_jax.sampling.captions import encode_captions
from unclip_jax.stages.encoders import Encoder
from unclip_jax.systems.system import System

PARALLEL = 1e-4
"""Sine of the angle below which the straight line is taken; at opposite points no way is the shortest."""


def slerp(
    a: Float[Array, " b *dims"], b: Float[Array, " b *dims"], theta: Float[Array, " b"] | float
) -> Float[Array, " b *dims"]:
    """Compute equation (1), row by row over all other dimensions; a at theta = 0, b at 1."""
    theta = jnp.broadcast_to(jnp.asarray(theta, jnp.float32), (len(a),))[:, None]
    x, y = a.reshape(len(a), -1), b.reshape(len(b), -1)
    lengths = [jnp.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)]
    x, y = (v / jnp.maximum(length, jnp.finfo(jnp.float32).tiny) for v, length in zip((x, y), lengths, strict=True))
    cos_omega = jnp.clip(jnp.sum(x * y, axis=1, keepdims=True), -1, 1)
    omega, sin_omega = jnp.arccos(cos_omega), jnp.sqrt(1 - jnp.square(cos_omega))
    curved = (jnp.sin((1 - theta) * omega) * x + jnp.sin(theta * omega) * y) / jnp.maximum(sin_omega, PARALLEL)
    way = jnp.where(sin_omega > PARALLEL, curved, (1 - theta) * x + theta * y)
    length = (1 - theta) * lengths[0] + theta * lengths[1]
    return (length * way).reshape(a.shape)


def tokenise(system: System, captions: Sequence[str]) -> dict[str, np.ndarray]:
    """Tokenise captions to the arrays tokens and mask, cut where too long; UserError for a bundle that reads none."""
    encoded = encode_captions(system, captions)
    return {"tokens": encoded.tokens, "mask": encoded.mask}


def embed_images(system: System, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """Embed images in [-1, 1], of the size of the bundle's CLIP: z_i.

    Raises:
        UserError: its CLIP has no image tower.
        ValueError: the images have another size.
    """
    encoder = system.encoder("clip")
    size = encoder.clip.image_tower.image_size
    if images.shape[1:3] != (size, size):
        raise ValueError(f"this CLIP sees images of {size} x {size} px; got {images.shape[1:3]}")
    return _encode_image(encoder, images)


def embed_captions(system: System, captions: Sequence[str]) -> Float[Array, "b d"]:
    """Embed captions: z_t; UserError as `tokenise`."""
    return _encode_text(system.encoder("clip"), jnp.asarray(tokenise(system, captions)["tokens"])).z_t


_encode_image = jax.jit(Encoder.encode_image)
_encode_text = jax.jit(Encoder.encode_text)
