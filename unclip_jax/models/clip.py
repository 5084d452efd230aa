"""CLIP: an image tower and a text tower with a common embedding space (Radford et al., 2103.00020).

(1) z_i = W_i LN(ViT(x)[cls])              pre-LN Vision Transformer with LN before the first block, class token
(2) z_t = W_t LN(Transformer(y))[eos]      causal Transformer, read at the first end-of-text token
(3) logits = exp(min(s, log 100)) z_i z_t^T / (|z_i| |z_t|)

With `embedding = "unit"` z_i and z_t are divided by their norms, as unCLIP uses them (the factor 17.2 of 2204.06125
presumes it); with "raw" they leave as they are, as in Karlo and Kandinsky.

Either tower may be absent: Karlo, for one, ships the text tower alone.
"""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.base import Dtype, Network, apply_module, check_heads, check_sizes, init_module
from unclip_jax.models.rules import BLOCKS, EMBEDDINGS, REST
from unclip_jax.nn.attention import Implementation
from unclip_jax.nn.norms import layer_norm
from unclip_jax.nn.remat import Remat
from unclip_jax.nn.transformer import Activation, Transformer, causal_mask
from unclip_jax.parallel.rules import Rules

MAX_LOGIT_SCALE = 4.6051702  # log 100, equation (3)


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """The image tower. `image_size` and `patch_size` in pixels; `mlp_width` is 4 x `width` unless given."""

    RENAMED: ClassVar = {"depth": "num_layers", "heads": "num_heads"}

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int | None = None

    def __post_init__(self) -> None:
        check_sizes("vision", self)
        check_heads("vision", self.width, self.num_heads)
        if self.image_size % self.patch_size:
            raise UserError(f"vision: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """A text tower of `context` tokens out of `vocab_size`; `eos_id` marks the end of the caption. `mlp_width` is
    4 x `width` unless given.
    """

    RENAMED: ClassVar = {"depth": "num_layers", "heads": "num_heads"}

    vocab_size: int
    context: int
    width: int
    num_layers: int
    num_heads: int
    eos_id: int
    mlp_width: int | None = None

    def __post_init__(self) -> None:
        check_sizes("text", self)
        check_heads("text", self.width, self.num_heads)

    def shared_sizes(self) -> dict[str, int]:
        """Return the sizes that the tokenizer decides, as `Network.shared_sizes`."""
        return {"context": self.context, "vocab_size": self.vocab_size, "eos_id": self.eos_id}

    def fitted(self, sizes: Mapping[str, int]) -> "TextSpec":
        """Return the same tower, reading other tokens."""
        return replace(self, **{name: sizes.get(name, value) for name, value in self.shared_sizes().items()})


@dataclass(frozen=True, kw_only=True)
class CLIPSpec(Network):
    """The towers. `image_mean` and `image_std` are per RGB channel, of images in [0, 1]. Without `projection` W_i and
    W_t of equations (1) and (2) are left out; without `contrastive` there is no logit scale, so no equation (3).
    """

    TAG: ClassVar = ("network", "clip")

    embed_dim: int
    vision: VisionSpec | None = None
    text: TextSpec | None = None
    projection: bool = True
    contrastive: bool = True
    activation: Activation = "gelu"
    embedding: Literal["unit", "raw"] = "unit"
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    dtype: Dtype = "float32"
    remat: Remat = False
    scan: bool = False
    attention: Implementation = "xla"

    def __post_init__(self) -> None:
        check_sizes("clip", self)
        towers = [tower for tower in (self.vision, self.text) if tower is not None]
        if not towers:
            raise UserError("clip: there is no tower; set vision, text or both")
        if self.contrastive and len(towers) < 2:
            raise UserError("clip: one tower alone has nothing to contrast with; set contrastive to False")
        if not self.projection and any(tower.width != self.embed_dim for tower in towers):
            raise UserError(f"clip: embed_dim {self.embed_dim} is not the towers' width; without projection it must be")

    @property
    def image_tower(self) -> VisionSpec:
        """`vision`; UserError where there is none."""
        if self.vision is None:
            raise UserError("this CLIP has no image tower, it reads captions only; use one that sees images")
        return self.vision

    @property
    def text_tower(self) -> TextSpec:
        """`text`; UserError where there is none."""
        if self.text is None:
            raise UserError("this CLIP has no text tower, it sees images only; use one that reads captions")
        return self.text

    def only(self, towers: Collection[str]) -> "CLIPSpec":
        """Return the part of this CLIP that some of its towers, "image" and "text", are: its parameters are among
        those of the whole."""
        vision, text = self.vision if "image" in towers else None, self.text if "text" in towers else None
        if (vision, text) == (self.vision, self.text):
            return self
        return replace(self, vision=vision, text=text, contrastive=False)

    def apply(self, params: Params, images: Float[Array, "b h w 3"], tokens: Int[Array, "c n"]) -> Float[Array, "b c"]:
        """Compute equation (3): logits [image, text]; in training, of a batch of pairs."""
        return apply_module(CLIP(self), params, images, tokens)

    def encode_image(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Encode images in [-1, 1] of the tower's size: z_i."""
        return apply_module(CLIP(self), params, images, method="encode_image")

    def encode_text(self, params: Params, tokens: Int[Array, "b n"]) -> "TextFeatures":
        """Encode tokenised captions: z_t and hidden states."""
        return apply_module(CLIP(self), params, tokens, method="encode_text")

    def init(self, key: Key[Array, ""]) -> Params:
        images = tokens = None
        if self.vision is not None:
            images = jnp.zeros((1, self.vision.image_size, self.vision.image_size, 3))
        if self.text is not None:
            tokens = jnp.zeros((1, self.text.context), jnp.int32)
        return init_module(CLIP(self), key, images, tokens, method="touch")

    def sharding_rules(self) -> Rules:
        return (*BLOCKS, *(() if self.text is None else EMBEDDINGS), *REST)

    def describe(self) -> str:
        towers = [f"images {self.vision.image_size} px"] if self.vision is not None else []
        return ", ".join(towers + ([f"captions {self.text.context} tokens"] if self.text is not None else []))

    def shared_sizes(self) -> dict[str, int]:
        sizes = {"embed_dim": self.embed_dim}
        return sizes if self.text is None else sizes | {"text_width": self.text.width} | self.text.shared_sizes()


@struct.dataclass
class TextFeatures:
    """What a caption becomes: the embedding z_t and the hidden states after the last LayerNorm."""

    z_t: Float[Array, "b d"]
    hidden: Float[Array, "b n w"]


class CLIP(nn.Module):
    """Equations (1) to (3); `encode_image` and `encode_text` are the two entries."""

    spec: CLIPSpec

    def setup(self) -> None:
        spec, dtype = self.spec, jnp.dtype(self.spec.dtype)
        normal = nn.initializers.normal
        transformer = functools.partial(
            Transformer,
            activation=spec.activation,
            dtype=dtype,
            remat=spec.remat,
            scan=spec.scan,
            implementation=spec.attention,
        )
        if (vision := spec.vision) is not None:
            num_patches = (vision.image_size // vision.patch_size) ** 2
            self.patch_embed = nn.Dense(vision.width, use_bias=False, dtype=dtype)
            self.class_token = self.param("class_token", normal(vision.width**-0.5), (vision.width,))
            self.vision_positions = self.param(
                "vision_positions", normal(vision.width**-0.5), (num_patches + 1, vision.width)
            )
            self.norm_pre = layer_norm(dtype, "norm_pre")
            self.vision_blocks = transformer(vision.num_layers, vision.num_heads, vision.mlp_width)
            self.norm_post = layer_norm(dtype, "norm_post")
            if spec.projection:
                self.image_projection = nn.Dense(spec.embed_dim, use_bias=False, dtype=dtype)
        if (text := spec.text) is not None:
            self.token_embed = nn.Embed(text.vocab_size, text.width, dtype=dtype, embedding_init=normal(0.02))
            self.text_positions = self.param("text_positions", normal(0.01), (text.context, text.width))
            self.text_blocks = transformer(text.num_layers, text.num_heads, text.mlp_width)
            self.norm_final = layer_norm(dtype, "norm_final")
            if spec.projection:
                self.text_projection = nn.Dense(spec.embed_dim, use_bias=False, dtype=dtype)
        if spec.contrastive:
            self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592600), ())  # log(1 / 0.07)

    def encode_image(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Compute equation (1): z_i, float32, of images in [-1, 1] that already have the tower's size."""
        b, p = images.shape[0], self.spec.image_tower.patch_size
        side = self.spec.image_tower.image_size // p
        mean, std = jnp.array(self.spec.image_mean), jnp.array(self.spec.image_std)
        x = ((images + 1) / 2 - mean) / std
        x = x.reshape(b, side, p, side, p, 3).swapaxes(2, 3).reshape(b, side * side, p * p * 3)
        x = self.patch_embed(x)
        cls = jnp.broadcast_to(self.class_token.astype(x.dtype), (b, 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1) + self.vision_positions.astype(x.dtype)
        x = self.vision_blocks(self.norm_pre(x))
        pooled = self.norm_post(x[:, 0])
        return self._finish(self.image_projection(pooled) if self.spec.projection else pooled)

    def encode_text(self, tokens: Int[Array, "b n"]) -> TextFeatures:
        """Compute equation (2): z_t and hidden states. What follows the first end-of-text token has no influence on
        z_t."""
        x = self.token_embed(tokens) + self.text_positions.astype(self.spec.dtype)
        hidden = self.norm_final(self.text_blocks(x, causal_mask(tokens.shape[1])))
        end = jnp.argmax(tokens == self.spec.text_tower.eos_id, axis=1)
        pooled = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        z_t = self._finish(self.text_projection(pooled) if self.spec.projection else pooled)
        return TextFeatures(z_t=z_t, hidden=hidden.astype(jnp.float32))

    def __call__(self, images: Float[Array, "b h w 3"], tokens: Int[Array, "c n"]) -> Float[Array, "b c"]:
        """Compute equation (3): logits [image, text]; in training, of a batch of pairs."""
        z_i, z_t = unit(self.encode_image(images)), unit(self.encode_text(tokens).z_t)
        return jnp.exp(jnp.minimum(self.logit_scale, MAX_LOGIT_SCALE)) * z_i @ z_t.T

    def touch(self, images: Array | None, tokens: Array | None) -> None:
        """Run the towers that there are, so that their parameters are created."""
        if images is not None:
            self.encode_image(images)
        if tokens is not None:
            self.encode_text(tokens)

    def _finish(self, z: Array) -> Array:
        z = z.astype(jnp.float32)
        return unit(z) if self.spec.embedding == "unit" else z


def unit(z: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Return z / |z|."""
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def vit_h16() -> CLIPSpec:
    """Return the CLIP of the unCLIP paper: ViT-H/16 at 256 px, text width 1024 and depth 24 (2204.06125, section 2).

    Its text context is not in the paper; 256 is that of the prior and the decoder, so that one tokenisation serves all.
    """
    return CLIPSpec(
        embed_dim=1024,
        vision=VisionSpec(image_size=256, patch_size=16, width=1280, num_layers=32, num_heads=16),
        text=TextSpec(vocab_size=49408, context=256, width=1024, num_layers=24, num_heads=16, eos_id=49407),
        dtype="bfloat16",
        remat=True,
        scan=True,
    )
