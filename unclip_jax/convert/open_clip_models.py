"""OpenCLIP's models by name, for weights that come without their open_clip_config.json.

A name decides a function where all weights that were published under it agree on activation, heads and the preparation
of images (`open_clip.pretrained`). Those that do not are in `AMBIGUOUS`.
"""

import dataclasses

from unclip_jax.convert.config_files import Config
from unclip_jax.core.config import suggest
from unclip_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What a model's own config says of it."""

    embed_dim: int
    vision: tuple[int, int, int, float]
    """Depth, width, width of a head, MLP ratio."""
    text: tuple[int, int, int]
    """Depth, width, heads."""
    image_size: int = 224
    patch_size: int = 14
    quick_gelu: bool = False


_B = Model(embed_dim=512, vision=(12, 768, 64, 4.0), text=(12, 512, 8))
_L = Model(embed_dim=768, vision=(24, 1024, 64, 4.0), text=(12, 768, 12))
_BIG = Model(embed_dim=1280, vision=(48, 1664, 104, 4.9231), text=(32, 1280, 20))
_of = dataclasses.replace

MODELS = {
    "ViT-B-32": _of(_B, patch_size=32),
    "ViT-B-32-256": _of(_B, patch_size=32, image_size=256),
    "ViT-B-32-quickgelu": _of(_B, patch_size=32, quick_gelu=True),
    "ViT-B-16": _of(_B, patch_size=16),
    "ViT-B-16-quickgelu": _of(_B, patch_size=16, quick_gelu=True),
    "ViT-B-16-plus-240": Model(
        embed_dim=640, vision=(12, 896, 64, 4.0), text=(12, 640, 10), image_size=240, patch_size=16
    ),
    "ViT-L-14-quickgelu": _of(_L, quick_gelu=True),
    "ViT-L-14-336-quickgelu": _of(_L, quick_gelu=True, image_size=336),
    "ViT-H-14": Model(embed_dim=1024, vision=(32, 1280, 80, 4.0), text=(24, 1024, 16)),
    "ViT-g-14": Model(embed_dim=1024, vision=(40, 1408, 88, 4.3637), text=(24, 1024, 16)),
    "ViT-bigG-14": _BIG,
    "ViT-bigG-14-quickgelu": _of(_BIG, quick_gelu=True),
}

AMBIGUOUS = {
    "ViT-L-14": "means and deviations of images",
    "ViT-H-14-quickgelu": "ways of resizing images",
    "ViT-H-14-378-quickgelu": "ways of resizing images",
}
"""Names under which weights with several of something were published, or with one that is not known here."""


def config_of_name(name: str) -> Config:
    """Return open_clip_config.json of a model by name.

    Raises UserError for a name that is not known, or that means several functions.
    """
    if name in AMBIGUOUS:
        raise UserError(
            f"{name} was published with several {AMBIGUOUS[name]}; give --config the open_clip_config.json of yours"
        )
    if name not in MODELS:
        raise UserError(
            f"--config is {name!r}, neither an open_clip_config.json nor a model known by name; "
            f"{suggest(name, [*MODELS, 'openai'])}"
        )
    model = MODELS[name]
    depth, width, head_width, mlp_ratio = model.vision
    text_depth, text_width, text_heads = model.text
    vision = {"image_size": model.image_size, "patch_size": model.patch_size, "layers": depth, "width": width}
    text = {"context_length": 77, "vocab_size": 49408, "width": text_width, "heads": text_heads, "layers": text_depth}
    return {
        "model_cfg": {
            "embed_dim": model.embed_dim,
            "quick_gelu": model.quick_gelu,
            "vision_cfg": vision | {"head_width": head_width, "mlp_ratio": mlp_ratio},
            "text_cfg": text,
        }
    }
