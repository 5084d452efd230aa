"""Other images with the same CLIP embedding (2204.06125, section 3.1), drawn as Karlo does.

(1) z_i = CLIP(image),  x_T ~ N(0, I)
(2) x = decoder(z_i, no caption), and the upsamplers

What z_i does not say, the noise decides.
"""

from collections.abc import Iterator
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import Drawn, decode
from unclip_jax.errors import UserError
from unclip_jax.models import clip
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.settings import StageSettings


def variations(
    bundle: Bundle,
    images: Float[Array, "b h w 3"],
    key: Key[Array, ""],
    *,
    indices: Int[Array, " b"] | None = None,
    settings: dict[str, StageSettings] | None = None,
    stop_at: int | None = None,
) -> Iterator[Drawn]:
    """Draws one variation of each image, stage by stage; z_i comes first, under the name of CLIP.

    Args:
        images: in [-1, 1], of the size that the bundle's CLIP sees.
        key, indices, settings, stop_at: as in `cascade`.

    Raises:
        UserError: the bundle has no tokenizer, its CLIP no image tower, or what `cascade` raises.
        ValueError: the images have another size.
    """
    part = bundle.part("clip")
    spec = cast(CLIPSpec, part.spec)
    size = spec.image_tower.image_size
    if images.shape[1:3] != (size, size):
        raise ValueError(f"this CLIP sees images of {size} x {size} px; got {images.shape[1:3]}")
    if bundle.tokenizer is None:
        raise UserError(f"bundle {bundle.name} has no tokenizer; use one that reads captions")
    z_i = _encode(spec, part.params, images)
    yield Drawn("clip", z_i)
    nothing = bundle.tokenizer.encode([""] * len(images), spec.text_tower.context)
    yield from decode(
        bundle,
        z_i,
        jnp.asarray(nothing.tokens),
        jnp.asarray(nothing.mask),
        key,
        captioned=False,
        indices=indices,
        settings=settings,
        stop_at=stop_at,
    )


_encode = jax.jit(clip.encode_image, static_argnums=0)
