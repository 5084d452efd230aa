"""The U-Net of ADM and GLIDE with unCLIP's conditioning: the decoder, and the upsamplers as presets of it.

(1) e = MLP(sinusoid(t)) + W_e z_i + W_y pool(h)              time, image and caption embedding, to every ResBlock
(2) context = [ reshape(W_c z_i) in 4 tokens | h_1 .. h_n ]   keys and values of every attention block
(3) output = UNet([x_t | low_res | masked_image], e, context)   3 channels of prediction, 3 more when sigma is learned

(2204.06125, section 2.1: z_i "projected and added to the timestep embedding" and "to four extra tokens of context";
2112.10741 for the caption path, h being GLIDE's own text Transformer or CLIP's hidden states; 2105.05233 for the
network: BigGAN resampling inside ResBlocks, AdaGN, attention at low resolutions with a fixed width per head.)

Upsamplers have neither z_i nor caption nor attention: they see the low-resolution image on the input channels. Either
can be made for inpainting: the masked image and its mask are four input channels more (2112.10741, section 3.3).
`patch` > 1 folds patch x patch pixels into channels before the first convolution, so that a small machine can train
at twice the resolution for the same work.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.base import Denoiser, Dtype, Network, Null, apply_module, check_sizes, init_module, require
from unclip_jax.models.clip import TextSpec
from unclip_jax.models.cond import EncodedCaption, UNetCond
from unclip_jax.models.rules import BLOCKS, COLUMNS, EMBEDDINGS, INPUTS, OUTPUTS, REST, ROWS
from unclip_jax.models.text_encoder import TextEncoder
from unclip_jax.models.unet_blocks import Block, unet_blocks
from unclip_jax.nn.attention import ContextAttention, Implementation
from unclip_jax.nn.conv import Conv3x3, depth_to_space, space_to_depth
from unclip_jax.nn.embeddings import TimestepMLP
from unclip_jax.nn.norms import GroupNorm, layer_norm
from unclip_jax.nn.remat import Remat, rematerialised
from unclip_jax.nn.resblock import Conditioning, Resample, ResBlock
from unclip_jax.parallel.layout import shard_batch
from unclip_jax.parallel.rules import Rules

INPAINT_CHANNELS = 4
"""The colours of the masked image, and the mask."""


@dataclass(frozen=True, kw_only=True)
class UNetSpec(Denoiser):
    """`channels` times `channel_mult` is the width of each level, `num_blocks` its ResBlocks; `attention_resolutions`
    are the sizes of feature maps, in pixels, that attend. `embed_dim` is the width of z_i, None for an upsampler. The
    caption comes through `text` (token ids, an encoder of the decoder's own) or as CLIP hidden states of `text_width`,
    or not at all; `null` says what stands for none (the encoding of the empty caption needs `text_width`).
    `z_i_scale` multiplies z_i at the entrance. `low_res` concatenates a low-resolution image of full size, `inpainting`
    the masked image.
    """

    TAG: ClassVar = ("network", "unet")
    RENAMED: ClassVar = {
        "depth": "num_blocks",
        "attention_at": "attention_resolutions",
        "image_tokens": "num_image_tokens",
        "inpaints": "inpainting",
    }
    Cond: ClassVar = UNetCond

    image_size: int
    channels: int
    channel_mult: tuple[int, ...]
    num_blocks: int
    learned_sigma: bool
    attention_resolutions: tuple[int, ...] = ()
    head_channels: int = 64
    conditioning: Conditioning = "scale_shift"
    dropout: float = 0.0
    groups: int = 32
    patch: int = 1
    embed_dim: int | None = None
    num_image_tokens: int = 4
    z_i_scale: float = 1.0
    context_width: int = 512
    text: TextSpec | None = None
    text_width: int | None = None
    null: Null = "learned"
    low_res: bool = False
    inpainting: bool = False
    dtype: Dtype = "float32"
    remat: Remat = False
    scan: bool = False
    attention: Implementation = "xla"

    def __post_init__(self) -> None:
        check_sizes("unet", self)
        if self.text is not None and self.text_width is not None:
            raise UserError("unet: set text (own encoder) or text_width (CLIP hidden states), not both")
        if self.null == "empty_caption" and self.text_width is None:
            raise UserError("unet: null empty_caption needs CLIP hidden states; set text_width")
        if self.image_size % self.multiple:
            raise UserError(f"unet: image_size {self.image_size} is not a multiple of {self.multiple}")
        for multiplier in self.channel_mult:
            width = self.channels * multiplier
            if width % self.groups or (self.attention_resolutions and width % self.head_channels):
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
        return 3 + 3 * self.low_res + INPAINT_CHANNELS * self.inpainting

    @property
    def has_caption(self) -> bool:
        """Whether the network reads a caption at all."""
        return self.text is not None or self.text_width is not None

    @property
    def cond_fields(self) -> frozenset[str]:
        fields: set[str] = set()
        if self.embed_dim is not None:
            fields |= {"z_i", "drop_z_i"}
        if self.has_caption:
            fields |= {"mask", "drop_text"} | ({"tokens"} if self.text is not None else {"hidden", "z_t"})
        if self.null == "empty_caption":
            fields.add("empty")
        if self.low_res:
            fields.add("low_res")
        return frozenset(fields | {"masked_image"} if self.inpainting else fields)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.image_size, self.image_size, 3

    @property
    def learns_variance(self) -> bool:
        return self.learned_sigma

    def attends(self, level: int) -> bool:
        """Return whether the blocks of a level attend."""
        return self.image_size // (self.patch * 2**level) in self.attention_resolutions

    def blocks(self) -> list[Block]:
        """Return all blocks between the two convolutions at either end, in the order in which they run."""
        widths = [self.channels * multiplier for multiplier in self.channel_mult]
        attends = [self.attends(level) for level in range(len(widths))]
        return unet_blocks(widths, self.num_blocks, attends, bool(self.attention_resolutions))

    def apply(
        self,
        params: Params,
        x_t: Float[Array, "b h w 3"],
        time: Float[Array, " b"],
        cond: UNetCond,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w _"]:
        """Compute equation (3); without keys there is no dropout."""
        return apply_module(UNet(self), params, x_t, time, cond, dropout_keys)

    def init(self, key: Key[Array, ""]) -> Params:
        size = self.multiple
        cond = UNetCond(
            z_i=None if self.embed_dim is None else jnp.zeros((1, self.embed_dim)),
            drop_z_i=None if self.embed_dim is None else jnp.zeros(1, bool),
            low_res=jnp.zeros((1, size, size, 3)) if self.low_res else None,
            masked_image=jnp.zeros((1, size, size, INPAINT_CHANNELS)) if self.inpainting else None,
        )
        if self.has_caption:
            context = self.text.context if self.text is not None else 1
            mask = jnp.ones((1, context), bool)
            cond = dataclasses.replace(cond, mask=mask, drop_text=jnp.zeros(1, bool))
            if self.text is not None:
                cond = dataclasses.replace(cond, tokens=jnp.zeros((1, context), jnp.int32))
            if self.text_width is not None:
                hidden = jnp.zeros((1, context, self.text_width))
                z_t = jnp.zeros((1, self.embed_dim or self.text_width))
                empty = EncodedCaption(z_t=z_t, hidden=hidden, mask=mask) if self.null == "empty_caption" else None
                cond = dataclasses.replace(cond, hidden=hidden, z_t=z_t, empty=empty)
        return init_module(UNet(self), key, jnp.zeros((1, size, size, 3)), jnp.zeros(1), cond)

    def sharding_rules(self) -> Rules:
        return (
            # Three channels, or six, divide by nothing.
            (r"^conv_in/kernel$", OUTPUTS),
            (r"^conv_out/kernel$", INPUTS),
            *(() if self.text is None else (*BLOCKS, *EMBEDDINGS)),
            *self._wide_levels(),
            *REST,
        )

    def _wide_levels(self) -> Rules:
        """Return the rules of tensor parallelism, for levels whose kernels, and not whose pixels, are what is large."""
        wide = [level for level, multiplier in enumerate(self.channel_mult) if multiplier >= 2 * self.channel_mult[0]]
        if not wide:
            return ()
        place = rf"^((down|up)_[{''.join(map(str, wide))}]_\w+|middle_\w+)"
        attention: Rules = ()
        if any(self.attends(level) for level in wide):
            attention = (
                (rf"{place}/(context_)?(query|key|value)/kernel$", COLUMNS),
                (rf"{place}/(context_)?(query|key|value)/bias$", P("tensor")),
                (rf"{place}/out/kernel$", ROWS),
            )
        return ((rf"{place}/conv_in/kernel$", COLUMNS), (rf"{place}/conv_out/kernel$", ROWS), *attention)

    def shared_sizes(self) -> dict[str, int]:
        sizes = {} if self.text is None else self.text.shared_sizes()
        own = {"embed_dim": self.embed_dim, "text_width": self.text_width}
        return sizes | {name: size for name, size in own.items() if size is not None}

    def fitted(self, sizes: Mapping[str, int]) -> "UNetSpec":
        own = {"embed_dim": self.embed_dim, "text_width": self.text_width}
        taken = {name: sizes.get(name, size) for name, size in own.items() if size is not None}
        text = None if self.text is None else self.text.fitted(sizes)
        return dataclasses.replace(self, **taken, text=text)

    def of_weights(self, trained: Network) -> Network:
        found = super().of_weights(trained)
        # `start_from` adds the inputs for inpainting.
        return dataclasses.replace(found, inpainting=True) if self.inpainting and isinstance(found, UNetSpec) else found

    def start_from(self, params: Params) -> Params:
        """Add the inputs for inpainting where they are missing: new ones weigh 0, so that the network starts as the
        same function (2112.10741, section 3.3). All else stays.
        """
        if not self.inpainting:
            return params
        kernel = params["conv_in"]["kernel"]
        height, width, inputs, features = kernel.shape
        pixels, added = self.patch**2, INPAINT_CHANNELS
        if inputs != (self.in_channels - added) * pixels:
            return params
        # `space_to_depth` has the channels of one pixel side by side, and the pixels of a patch one after another.
        apart = kernel.reshape(height, width, pixels, -1, features)
        widened = jnp.pad(apart, ((0, 0), (0, 0), (0, 0), (0, added), (0, 0))).reshape(height, width, -1, features)
        return params | {"conv_in": params["conv_in"] | {"kernel": widened}}

    def describe(self) -> str:
        return f"{self.image_size} px{', inpainting' if self.inpainting else ''}"


class Conditioner(nn.Module):
    """Equations (1) and (2): the embedding for the ResBlocks, the context and its mask for attention."""

    spec: UNetSpec

    @nn.compact
    def __call__(self, t: Float[Array, " b"], cond: UNetCond) -> tuple[Array, Array | None, Array | None]:
        spec, dtype = self.spec, jnp.dtype(self.spec.dtype)
        normal = nn.initializers.normal
        width = 4 * spec.channels
        b = t.shape[0]
        embedding = TimestepMLP(spec.channels, width, dtype, name="time")(t)
        tokens, masks = [], []
        if spec.embed_dim is not None:
            null_z_i = self.param("null_z_i", normal(0.02), (spec.embed_dim,))
            drop = require(cond.drop_z_i, "drop_z_i")[:, None]
            z_i = jnp.where(drop, null_z_i, require(cond.z_i, "z_i") * spec.z_i_scale)
            embedding = embedding + nn.Dense(width, dtype=dtype, name="z_i_embedding")(z_i)
            image_tokens = nn.Dense(spec.num_image_tokens * spec.context_width, dtype=dtype, name="z_i_tokens")(z_i)
            tokens.append(image_tokens.reshape(b, spec.num_image_tokens, spec.context_width))
            masks.append(jnp.ones((b, spec.num_image_tokens), bool))
        if spec.has_caption:
            drop, mask = require(cond.drop_text, "drop_text"), require(cond.mask, "mask")
            if spec.text is not None:
                encoder = TextEncoder(spec.text, dtype, spec.remat, spec.scan, spec.attention, name="text")
                hidden = encoder(require(cond.tokens, "tokens"), mask)
                last = mask.sum(1) - 1
                pooled = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
            else:
                caption = EncodedCaption(z_t=require(cond.z_t, "z_t"), hidden=require(cond.hidden, "hidden"), mask=mask)
                if spec.null == "empty_caption":
                    caption = caption.replaced(drop, require(cond.empty, "empty"))
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
        embedding = shard_batch(embedding)
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
        t: Float[Array, " b"],
        cond: UNetCond,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w _"]:
        spec, dtype = self.spec, jnp.dtype(self.spec.dtype)
        embedding, context, context_mask = Conditioner(spec, name="conditioner")(t, cond)
        res_block = rematerialised(ResBlock, spec.remat)
        attend = rematerialised(ContextAttention, spec.remat)

        def run(block: Block, x: Array) -> Array:
            if block.kind == "attention":
                module = attend(spec.head_channels, dtype, spec.groups, spec.attention, name=block.name)
                return module(x, context, context_mask)
            resample: Resample = "none"
            if block.kind == "resample":
                resample = "down" if block.place == "down" else "up"
            module = res_block(
                block.width,
                dtype=dtype,
                conditioning=spec.conditioning,
                resample=resample,
                dropout_rate=spec.dropout,
                groups=spec.groups,
                name=block.name,
            )
            return module(x, embedding, dropout_keys)

        pixels = [x_t]
        if spec.low_res:
            pixels.append(require(cond.low_res, "low_res"))
        if spec.inpainting:
            pixels.append(require(cond.masked_image, "masked_image"))
        x = space_to_depth(jnp.concatenate(pixels, axis=-1).astype(dtype), spec.patch)
        x = Conv3x3(spec.channels * spec.channel_mult[0], dtype=dtype, name="conv_in")(x)
        skips = [x]
        for block in spec.blocks():
            if block.takes_skip:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = run(block, x)
            if block.leaves_skip:
                skips.append(x)

        x = nn.silu(GroupNorm(spec.groups, dtype=dtype, name="norm_out")(x))
        out_channels = 3 * (1 + spec.learned_sigma) * spec.patch**2
        x = Conv3x3(out_channels, dtype=dtype, kernel_init=nn.initializers.zeros, name="conv_out")(x)
        return depth_to_space(x.astype(jnp.float32), spec.patch)


def paper_decoder() -> UNetSpec:
    """Return the paper's 3.5B decoder at 64 px: GLIDE's U-Net (2.3B) and its text Transformer (1.2B) (2204.06125, table
    3)."""
    return UNetSpec(
        image_size=64,
        channels=512,
        channel_mult=(1, 2, 3, 4),
        num_blocks=3,
        learned_sigma=True,
        attention_resolutions=(32, 16, 8),
        dropout=0.1,
        embed_dim=1024,
        context_width=2048,
        text=TextSpec(vocab_size=49408, context=256, width=2048, num_layers=24, num_heads=32, eos_id=49407),
        dtype="bfloat16",
        remat=True,
        scan=True,
    )


def paper_upsampler_256() -> UNetSpec:
    """Return the paper's 700M upsampler from 64 to 256 px (2204.06125, table 3)."""
    return UNetSpec(
        image_size=256,
        channels=320,
        channel_mult=(1, 2, 3, 4),
        num_blocks=3,
        learned_sigma=False,
        dropout=0.1,
        low_res=True,
        dtype="bfloat16",
        remat="products",
    )


def paper_upsampler_1024() -> UNetSpec:
    """Return the paper's 300M upsampler from 256 to 1024 px (2204.06125, table 3)."""
    return UNetSpec(
        image_size=1024,
        channels=192,
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_blocks=2,
        learned_sigma=False,
        low_res=True,
        dtype="bfloat16",
        remat="products",
    )
