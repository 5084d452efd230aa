"""The U-Net of ADM and GLIDE with unCLIP's conditioning: the decoder, and the upsamplers as presets of it.

(1) e = MLP(sinusoid(t)) + W_e z_i + W_y pool(h)              time, image and caption embedding, to every ResBlock
(2) context = [ reshape(W_c z_i) in 4 tokens | h_1 .. h_n ]   keys and values of every attention block
(3) output = UNet([x_t | low_res | known], e, context)        3 channels of prediction, 3 more when sigma is learned

(2204.06125, section 2.1: z_i "projected and added to the timestep embedding" and "to four extra tokens of context";
2112.10741 for the caption path, h being GLIDE's own text Transformer or CLIP's hidden states; 2105.05233 for the
network: BigGAN resampling inside ResBlocks, AdaGN, attention at low resolutions with a fixed width per head.)

Upsamplers have neither z_i nor caption nor attention: they see the low-resolution image on the input channels. Either
can be made for inpainting: what is known of the image itself, and where nothing is, are four input channels more
(2112.10741, section 3.3).
`patch` > 1 folds patch x patch pixels into channels before the first convolution, so that a small machine can train
at twice the resolution for the same work.
"""

import dataclasses
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.base import Dtype, Null, abstract, apply_module, given, init_module
from unclip_jax.models.clip import EncodedCaption, TextSpec
from unclip_jax.models.text_encoder import TextEncoder
from unclip_jax.nn.attention import ContextAttention, Implementation
from unclip_jax.nn.conv import Conv3x3, depth_to_space, space_to_depth
from unclip_jax.nn.embeddings import TimestepMLP
from unclip_jax.nn.norms import GroupNorm, layer_norm
from unclip_jax.nn.remat import Remat, rematerialised
from unclip_jax.nn.resblock import Conditioning, Resample, ResBlock
from unclip_jax.parallel.layout import split_rows

KNOWN_CHANNELS = 4
"""The colours of what is known of an image, and whether nothing is."""


@dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """`channels` times `channel_mult` is the width of each level, `depth` its ResBlocks, `attention_at` the feature-map
    sizes (in pixels of a full image) that attend. `embed_dim` is the width of z_i, None for an upsampler. The caption
    comes through `text` (token ids, an encoder of the decoder's own) or as CLIP hidden states of `text_width`, or not
    at all; `null` says what stands for none (the encoding of the empty caption asks for `text_width`). `z_i_scale`
    multiplies z_i at the entrance. `low_res` concatenates a low-resolution image of full size, `inpaints` what is known
    of the image.
    """

    image_size: int
    channels: int
    channel_mult: tuple[int, ...]
    depth: int
    learned_sigma: bool
    attention_at: tuple[int, ...] = ()
    head_channels: int = 64
    conditioning: Conditioning = "scale_shift"
    dropout: float = 0.0
    groups: int = 32
    patch: int = 1
    embed_dim: int | None = None
    image_tokens: int = 4
    z_i_scale: float = 1.0
    context_width: int = 512
    text: TextSpec | None = None
    text_width: int | None = None
    null: Null = "learned"
    low_res: bool = False
    inpaints: bool = False
    dtype: Dtype = "float32"
    remat: Remat = False
    scan: bool = False
    attention: Implementation = "xla"

    def __post_init__(self) -> None:
        if self.text is not None and self.text_width is not None:
            raise UserError("unet: set text (own encoder) or text_width (CLIP hidden states), not both")
        if self.null == "empty_caption" and self.text_width is None:
            raise UserError("unet: null empty_caption needs CLIP hidden states; set text_width")
        if self.image_size % self.multiple:
            raise UserError(f"unet: image_size {self.image_size} is not a multiple of {self.multiple}")
        for multiplier in self.channel_mult:
            width = self.channels * multiplier
            if width % self.groups or (self.attention_at and width % self.head_channels):
                raise UserError(
                    f"unet: width {width} is not divisible by groups {self.groups} and head_channels "
                    f"{self.head_channels}; change channels or channel_mult"
                )

    @property
    def multiple(self) -> int:
        """Image sides must be a multiple of this many pixels."""
        return self.patch * 2 ** (len(self.channel_mult) - 1)

    @property
    def in_channels(self) -> int:
        """What a pixel of the input holds."""
        return 3 + 3 * self.low_res + KNOWN_CHANNELS * self.inpaints

    @property
    def has_caption(self) -> bool:
        """Whether the network reads a caption at all."""
        return self.text is not None or self.text_width is not None


@struct.dataclass
class UNetCond:
    """What a decoder (`z_i` and a caption: `tokens`, or `hidden` with `z_t`) or an upsampler (`low_res`) is told.

    `low_res` and `known` have the size of x_t; `known` is what `unclip_jax.conditioning.known_part` makes. Where
    `drop_image` or `drop_text` is True, learned null embeddings stand in; for the caption `empty` does if the spec says
    so.
    """

    z_i: Float[Array, "b d"] | None = None
    tokens: Int[Array, "b n"] | None = None
    hidden: Float[Array, "b n w"] | None = None
    z_t: Float[Array, "b d"] | None = None
    mask: Bool[Array, "b n"] | None = None
    drop_image: Bool[Array, " b"] | None = None
    drop_text: Bool[Array, " b"] | None = None
    empty: EncodedCaption | None = None
    low_res: Float[Array, "b h w 3"] | None = None
    known: Float[Array, "b h w 4"] | None = None

    def null(self) -> "UNetCond":
        """The unconditional condition, for classifier-free guidance; pixels stay."""
        return dataclasses.replace(
            self,
            drop_image=None if self.drop_image is None else jnp.ones_like(self.drop_image),
            drop_text=None if self.drop_text is None else jnp.ones_like(self.drop_text),
        )


class Conditioner(nn.Module):
    """Equations (1) and (2): the embedding for the ResBlocks, the context and its mask for attention."""

    spec: UNetSpec

    @nn.compact
    def __call__(self, t: Int[Array, " b"], cond: UNetCond) -> tuple[Array, Array | None, Array | None]:
        spec, dtype = self.spec, jnp.dtype(self.spec.dtype)
        normal = nn.initializers.normal
        width = 4 * spec.channels
        b = t.shape[0]
        embedding = TimestepMLP(spec.channels, width, dtype, name="time")(t)
        tokens, masks = [], []
        if spec.embed_dim is not None:
            null_z_i = self.param("null_z_i", normal(0.02), (spec.embed_dim,))
            drop = given(cond.drop_image, "drop_image")[:, None]
            z_i = jnp.where(drop, null_z_i, given(cond.z_i, "z_i") * spec.z_i_scale)
            embedding = embedding + nn.Dense(width, dtype=dtype, name="z_i_embedding")(z_i)
            image_tokens = nn.Dense(spec.image_tokens * spec.context_width, dtype=dtype, name="z_i_tokens")(z_i)
            tokens.append(image_tokens.reshape(b, spec.image_tokens, spec.context_width))
            masks.append(jnp.ones((b, spec.image_tokens), bool))
        if spec.has_caption:
            drop, mask = given(cond.drop_text, "drop_text"), given(cond.mask, "mask")
            if spec.text is not None:
                encoder = TextEncoder(spec.text, dtype, spec.remat, spec.scan, spec.attention, name="text")
                hidden = encoder(given(cond.tokens, "tokens"), mask)
                last = mask.sum(1) - 1
                pooled = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
            else:
                caption = EncodedCaption(z_t=given(cond.z_t, "z_t"), hidden=given(cond.hidden, "hidden"), mask=mask)
                if spec.null == "empty_caption":
                    caption = caption.replaced(drop, given(cond.empty, "empty"))
                pooled, hidden, mask = caption.z_t, caption.hidden, caption.mask
            text = layer_norm(dtype, "text_norm")(nn.Dense(spec.context_width, dtype=dtype, name="text_in")(hidden))
            pooled = nn.Dense(width, dtype=dtype, name="text_embedding")(pooled)
            if spec.null == "learned":
                null_text = self.param("null_text", normal(0.02), (spec.context_width,)).astype(dtype)
                text = jnp.where(drop[:, None, None], null_text, text)
                null_pooled = self.param("null_pooled", normal(0.02), (width,)).astype(dtype)
                pooled = jnp.where(drop[:, None], null_pooled, pooled)
                mask = mask | drop[:, None]
            tokens.append(text)
            masks.append(mask)
            embedding = embedding + pooled
        embedding = split_rows(embedding)
        if not tokens:
            return embedding, None, None
        return embedding, jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1)


class UNet(nn.Module):
    """Equation (3): x_t in [b h w 3], output [b h w 3] or [b h w 6], float32."""

    spec: UNetSpec

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "b h w 3"],
        t: Int[Array, " b"],
        cond: UNetCond,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w _"]:
        spec, dtype = self.spec, jnp.dtype(self.spec.dtype)
        embedding, context, context_mask = Conditioner(spec, name="conditioner")(t, cond)
        res_block = rematerialised(ResBlock, spec.remat)
        attend = rematerialised(ContextAttention, spec.remat)
        levels = range(len(spec.channel_mult))

        def residual(x: Array, level: int, name: str, how: Resample = "none") -> Array:
            block = res_block(
                spec.channels * spec.channel_mult[level],
                dtype=dtype,
                conditioning=spec.conditioning,
                resample=how,
                dropout_rate=spec.dropout,
                groups=spec.groups,
                name=name,
            )
            return block(x, embedding, dropout_keys)

        def attention(x: Array, name: str) -> Array:
            block = attend(spec.head_channels, dtype, spec.groups, spec.attention, name=name)
            return block(x, context, context_mask)

        def attends(level: int) -> bool:
            return spec.image_size // (spec.patch * 2**level) in spec.attention_at

        pixels = [x_t]
        if spec.low_res:
            pixels.append(given(cond.low_res, "low_res"))
        if spec.inpaints:
            pixels.append(given(cond.known, "known"))
        x = space_to_depth(jnp.concatenate(pixels, axis=-1).astype(dtype), spec.patch)
        x = Conv3x3(spec.channels * spec.channel_mult[0], dtype=dtype, name="conv_in")(x)
        skips = [x]
        for level in levels:
            for i in range(spec.depth):
                x = residual(x, level, f"down_{level}_{i}")
                if attends(level):
                    x = attention(x, f"down_{level}_{i}_attention")
                skips.append(x)
            if level != levels[-1]:
                x = residual(x, level, f"down_{level}_resample", "down")
                skips.append(x)

        x = residual(x, levels[-1], "middle_0")
        if spec.attention_at:
            x = attention(x, "middle_attention")
        x = residual(x, levels[-1], "middle_1")

        for level in reversed(levels):
            for i in range(spec.depth + 1):
                x = residual(jnp.concatenate([x, skips.pop()], axis=-1), level, f"up_{level}_{i}")
                if attends(level):
                    x = attention(x, f"up_{level}_{i}_attention")
            if level > 0:
                x = residual(x, level, f"up_{level}_resample", "up")

        x = nn.silu(GroupNorm(spec.groups, dtype=dtype, name="norm_out")(x))
        out_channels = 3 * (1 + spec.learned_sigma) * spec.patch**2
        x = Conv3x3(out_channels, dtype=dtype, kernel_init=nn.initializers.zeros, name="conv_out")(x)
        return depth_to_space(x.astype(jnp.float32), spec.patch)


def apply(
    spec: UNetSpec,
    params: Params,
    x_t: Float[Array, "b h w 3"],
    t: Int[Array, " b"],
    cond: UNetCond,
    dropout_keys: Key[Array, " b"] | None = None,
) -> Float[Array, "b h w _"]:
    """Equation (3): the output for images x_t at training step t; without keys nothing is dropped out."""
    return apply_module(UNet(spec), params, x_t, t, cond, dropout_keys)


def init_params(spec: UNetSpec, key: Key[Array, ""]) -> Params:
    """Random parameters, float32."""
    size = spec.multiple
    cond = UNetCond(
        z_i=None if spec.embed_dim is None else jnp.zeros((1, spec.embed_dim)),
        drop_image=None if spec.embed_dim is None else jnp.zeros(1, bool),
        low_res=jnp.zeros((1, size, size, 3)) if spec.low_res else None,
        known=jnp.zeros((1, size, size, KNOWN_CHANNELS)) if spec.inpaints else None,
    )
    if spec.has_caption:
        context = spec.text.context if spec.text is not None else 1
        mask = jnp.ones((1, context), bool)
        cond = dataclasses.replace(cond, mask=mask, drop_text=jnp.zeros(1, bool))
        if spec.text is not None:
            cond = dataclasses.replace(cond, tokens=jnp.zeros((1, context), jnp.int32))
        if spec.text_width is not None:
            hidden = jnp.zeros((1, context, spec.text_width))
            z_t = jnp.zeros((1, spec.embed_dim or spec.text_width))
            empty = EncodedCaption(z_t=z_t, hidden=hidden, mask=mask) if spec.null == "empty_caption" else None
            cond = dataclasses.replace(cond, hidden=hidden, z_t=z_t, empty=empty)
    return init_module(UNet(spec), key, jnp.zeros((1, size, size, 3)), jnp.zeros(1, jnp.int32), cond)


def abstract_params(spec: UNetSpec) -> Params:
    """The tree of `init_params` as shapes only."""
    return abstract(init_params, spec)


def made_to_inpaint(spec: UNetSpec, params: Params) -> Params:
    """Parameters for `spec` from those of the same network that does not inpaint: the new inputs weigh 0, so that it
    starts as the same function (2112.10741, section 3.3). Where nothing is missing, all stays.
    """
    if not spec.inpaints:
        return params
    kernel = params["conv_in"]["kernel"]
    height, width, inputs, features = kernel.shape
    pixels, added = spec.patch**2, KNOWN_CHANNELS
    if inputs != (spec.in_channels - added) * pixels:
        return params
    # `space_to_depth` has the channels of one pixel side by side, and the pixels of a patch one after another.
    apart = kernel.reshape(height, width, pixels, -1, features)
    widened = jnp.pad(apart, ((0, 0), (0, 0), (0, 0), (0, added), (0, 0))).reshape(height, width, -1, features)
    return params | {"conv_in": params["conv_in"] | {"kernel": widened}}


def paper_decoder() -> UNetSpec:
    """The paper's 3.5B decoder at 64 px: GLIDE's U-Net (2.3B) and its text Transformer (1.2B) (2204.06125, table 3)."""
    return UNetSpec(
        image_size=64,
        channels=512,
        channel_mult=(1, 2, 3, 4),
        depth=3,
        learned_sigma=True,
        attention_at=(32, 16, 8),
        dropout=0.1,
        embed_dim=1024,
        context_width=2048,
        text=TextSpec(vocab_size=49408, context=256, width=2048, depth=24, heads=32, eos_id=49407),
        dtype="bfloat16",
        remat=True,
        scan=True,
    )


def paper_upsampler_256() -> UNetSpec:
    """The paper's 700M upsampler from 64 to 256 px (2204.06125, table 3)."""
    return UNetSpec(
        image_size=256,
        channels=320,
        channel_mult=(1, 2, 3, 4),
        depth=3,
        learned_sigma=False,
        dropout=0.1,
        low_res=True,
        dtype="bfloat16",
        remat="products",
    )


def paper_upsampler_1024() -> UNetSpec:
    """The paper's 300M upsampler from 256 to 1024 px (2204.06125, table 3)."""
    return UNetSpec(
        image_size=1024,
        channels=192,
        channel_mult=(1, 1, 2, 2, 4, 4),
        depth=2,
        learned_sigma=False,
        low_res=True,
        dtype="bfloat16",
        remat="products",
    )
