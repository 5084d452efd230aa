"""Other images with the same CLIP embedding (2204.06125, section 3.1).

(1) z_i = CLIP(image)
(2) x = decoder(z_i, no caption; x_T, eta), and the upsamplers

With x_T ~ N(0, I), as Karlo does, all that z_i does not say is drawn anew. With the image's own x_T (`invert`), DDIM's
eta is the strength: 0 gives the image back, 1 keeps little more than z_i.
"""

from collections.abc import Iterator

from jaxtyping import Array, Float, Int, Key

from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import Drawn, decode
from unclip_jax.editing.points import embed_images, tokenise
from unclip_jax.stages.settings import StageSettings


def variations(
    bundle: Bundle,
    images: Float[Array, "b h w 3"],
    key: Key[Array, ""],
    *,
    x_T: Float[Array, "b H W 3"] | None = None,
    indices: Int[Array, " b"] | None = None,
    settings: dict[str, StageSettings] | None = None,
    stop_at: int | None = None,
) -> Iterator[Drawn]:
    """Draws one variation of each image, stage by stage; z_i comes first, under the name of CLIP.

    Args:
        images: in [-1, 1], of the size that the bundle's CLIP sees.
        x_T: what the decoder starts from; noise of `key` by default.
        key, indices, settings, stop_at: as in `cascade`.

    Raises:
        UserError: the bundle has no tokenizer, its CLIP no image tower, or what `cascade` raises.
        ValueError: the images have another size.
    """
    nothing = tokenise(bundle, [""] * len(images))
    z_i = embed_images(bundle, images)
    yield Drawn("clip", z_i)
    options = {"indices": indices, "settings": settings, "stop_at": stop_at}
    yield from decode(bundle, z_i, *nothing, key, captioned=False, x_T=x_T, **options)
