"""Images and captions as points of CLIP's space, and the way between two of them (2204.06125, section 3).

(1) slerp(a, b, theta) = |.| (sin((1 - theta) omega) a / |a| + sin(theta omega) b / |b|) / sin omega,
    cos omega = <a, b> / |a| |b|,   |.| = (1 - theta) |a| + theta |b|

(Shoemake, 1985.) For unit vectors, as the paper has them, |.| = 1. Between two draws of N(0, I) in many dimensions,
which all have about the same length, it stays among such draws, as their mean would not.
"""

from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.bundle.parts import Bundle
from unclip_jax.core.errors import UserError
from unclip_jax.models import clip
from unclip_jax.models.clip import CLIPSpec

PARALLEL = 1e-4
"""Sine of the angle below which the straight line is taken; at opposite points no way is the shortest."""


def slerp(
    a: Float[Array, " b *dims"], b: Float[Array, " b *dims"], theta: Float[Array, " b"] | float
) -> Float[Array, " b *dims"]:
    """Equation (1), row by row over all other dimensions; a at theta = 0, b at 1."""
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


def tokenise(bundle: Bundle, captions: list[str]) -> tuple[Int[Array, "b n"], Bool[Array, "b n"]]:
    """Tokens and masks of captions, cut where they are too long; UserError for a bundle that reads none."""
    if bundle.tokenizer is None:
        raise UserError(f"bundle {bundle.name} has no tokenizer; use one that reads captions")
    encoded = bundle.tokenizer.encode(captions, cast(CLIPSpec, bundle.part("clip").spec).text_tower.context)
    return jnp.asarray(encoded.tokens), jnp.asarray(encoded.mask)


def embed_images(bundle: Bundle, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """z_i of images in [-1, 1], of the size that the bundle's CLIP sees.

    Raises:
        UserError: its CLIP has no image tower.
        ValueError: the images have another size.
    """
    part = bundle.part("clip")
    spec = cast(CLIPSpec, part.spec)
    size = spec.image_tower.image_size
    if images.shape[1:3] != (size, size):
        raise ValueError(f"this CLIP sees images of {size} x {size} px; got {images.shape[1:3]}")
    return _encode_image(spec, part.params, images)


def embed_captions(bundle: Bundle, captions: list[str]) -> Float[Array, "b d"]:
    """z_t of captions; UserError as `tokenise`."""
    part = bundle.part("clip")
    return _encode_text(part.spec, part.params, tokenise(bundle, captions)[0]).z_t


_encode_image = jax.jit(clip.encode_image, static_argnums=0)
_encode_text = jax.jit(clip.encode_text, static_argnums=0)
