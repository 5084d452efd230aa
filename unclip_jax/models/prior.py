"""The diffusion prior: P(z_i | y), a causal Transformer that denoises CLIP image embeddings (2204.06125, section 2.2).

(1) s = [ W_h h_1 .. W_h h_n | W_t z_t | e(t) | W_z z_i^(t) | q ] + positions
(2) f(z_i^(t), t, y) = W_o LN(Transformer(s, causal and padding mask))[-1]

`h` are the caption's encoded tokens: CLIP's hidden states, or the output of an encoder of the prior's own. `q` is a
learned query. f predicts the clean embedding: L = E |f(z_i^(t), t, y) - z_i|^2 (paper, equation 2).

The network lives in the normalised space of `EmbeddingStats`; z_i enters and leaves the system raw.
"""

import dataclasses
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.base import Dtype, Null, abstract, apply_module, check_heads, given, init_module
from unclip_jax.models.clip import EncodedCaption, TextSpec
from unclip_jax.models.text_encoder import TextEncoder
from unclip_jax.nn.attention import Implementation
from unclip_jax.nn.embeddings import TimestepMLP
from unclip_jax.nn.norms import layer_norm
from unclip_jax.nn.remat import Remat
from unclip_jax.nn.transformer import Transformer, causal_mask


@dataclass(frozen=True, kw_only=True)
class PriorSpec:
    """`text` describes an encoder of token ids that the prior owns; without it the caption comes as CLIP hidden states
    of `text_width`. `context` is the number of text positions. `z_t_scale` multiplies z_t at the entrance. `null` says
    what stands for no caption; the encoding of the empty one asks for CLIP hidden states.
    """

    embed_dim: int
    context: int
    text_width: int
    width: int
    depth: int
    heads: int
    text: TextSpec | None = None
    z_t_scale: float = 1.0
    null: Null = "learned"
    dtype: Dtype = "float32"
    remat: Remat = False
    scan: bool = False
    attention: Implementation = "xla"

    def __post_init__(self) -> None:
        check_heads("prior", self.width, self.heads)
        if self.null == "empty_caption" and self.text is not None:
            raise UserError("prior: null empty_caption needs CLIP hidden states; leave text out")


@struct.dataclass
class PriorCond:
    """What the prior is told. Exactly one of `hidden` (CLIP's) and `tokens` is set; `mask` is True on real tokens.

    Where `drop` is True the caption is replaced: by learned null embeddings, or by `empty` if the spec says so.
    """

    z_t: Float[Array, "b d"]
    mask: Bool[Array, "b n"]
    drop: Bool[Array, " b"]
    hidden: Float[Array, "b n w"] | None = None
    tokens: Int[Array, "b n"] | None = None
    empty: EncodedCaption | None = None

    def null(self) -> "PriorCond":
        """The unconditional condition, for classifier-free guidance."""
        return dataclasses.replace(self, drop=jnp.ones_like(self.drop))


@struct.dataclass
class EmbeddingStats:
    """Mean and standard deviation of z_i over the training data, measured with the CLIP in use.

    (3) normalise(z) = (z - mean) / std     Karlo's whitening; mean = 0 and std = 1/17.2 is the paper's scaling
    """

    # Float[Array, " d"] both; shapes and shardings take the place of arrays at times.
    mean: PyTree
    std: PyTree

    def normalise(self, z_i: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """Equation (3)."""
        return (z_i - self.mean) / self.std

    def denormalise(self, z: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """The inverse of equation (3)."""
        return z * self.std + self.mean


class Prior(nn.Module):
    """Equations (1) and (2)."""

    spec: PriorSpec

    @nn.compact
    def __call__(self, x_t: Float[Array, "b d"], t: Int[Array, " b"], cond: PriorCond) -> Float[Array, "b d"]:
        spec, dtype = self.spec, jnp.dtype(self.spec.dtype)
        normal = nn.initializers.normal
        b = x_t.shape[0]

        if spec.text is None:
            hidden = given(cond.hidden, "hidden")
        else:
            hidden = TextEncoder(spec.text, dtype, spec.remat, spec.scan, spec.attention, name="text")(
                given(cond.tokens, "tokens"), cond.mask
            )
        caption = EncodedCaption(z_t=cond.z_t, hidden=hidden, mask=cond.mask)
        if spec.null == "empty_caption":
            caption = caption.replaced(cond.drop, given(cond.empty, "empty"))
        text = nn.Dense(spec.width, dtype=dtype, name="text_in")(caption.hidden)
        z_t = nn.Dense(spec.width, dtype=dtype, name="z_t_in")(caption.z_t * spec.z_t_scale)[:, None]
        mask = caption.mask
        if spec.null == "learned":
            drop = cond.drop[:, None, None]
            text = jnp.where(drop, self.param("null_text", normal(0.02), (spec.width,)).astype(dtype), text)
            z_t = jnp.where(drop, self.param("null_z_t", normal(0.02), (spec.width,)).astype(dtype), z_t)
            mask = mask | cond.drop[:, None]

        time = TimestepMLP(spec.width, spec.width, dtype, name="time")(t)[:, None]
        noised = nn.Dense(spec.width, dtype=dtype, name="z_i_in")(x_t)[:, None]
        query = self.param("query", normal(0.02), (spec.width,)).astype(dtype)
        query = jnp.broadcast_to(query, (b, 1, spec.width))
        sequence = jnp.concatenate([text, z_t, time, noised, query], axis=1)
        positions = self.param("positions", normal(0.01), (spec.context + 4, spec.width))
        sequence = sequence + positions.astype(dtype)

        visible = jnp.pad(mask, ((0, 0), (0, 4)), constant_values=True)
        mask = causal_mask(spec.context + 4) & visible[:, None, None, :]
        out = Transformer(
            spec.depth,
            spec.heads,
            dtype=dtype,
            remat=spec.remat,
            scan=spec.scan,
            implementation=spec.attention,
            name="transformer",
        )(sequence, mask)
        out = layer_norm(dtype, "norm_out")(out[:, -1])
        return nn.Dense(spec.embed_dim, dtype=jnp.float32, name="out")(out)


def apply(
    spec: PriorSpec, params: Params, x_t: Float[Array, "b d"], t: Int[Array, " b"], cond: PriorCond
) -> Float[Array, "b d"]:
    """Equation (2): the prediction for normalised embeddings x_t at training step t."""
    return apply_module(Prior(spec), params, x_t, t, cond)


def init_params(spec: PriorSpec, key: Key[Array, ""]) -> Params:
    """Random parameters, float32."""
    z_t, mask = jnp.zeros((1, spec.embed_dim)), jnp.ones((1, spec.context), bool)
    hidden = jnp.zeros((1, spec.context, spec.text_width))
    cond = PriorCond(
        z_t=z_t,
        mask=mask,
        drop=jnp.zeros(1, bool),
        hidden=hidden if spec.text is None else None,
        tokens=jnp.zeros((1, spec.context), jnp.int32) if spec.text is not None else None,
        empty=EncodedCaption(z_t=z_t, hidden=hidden, mask=mask) if spec.null == "empty_caption" else None,
    )
    return init_module(Prior(spec), key, jnp.zeros((1, spec.embed_dim)), jnp.zeros(1, jnp.int32), cond)


def abstract_params(spec: PriorSpec) -> Params:
    """The tree of `init_params` as shapes only."""
    return abstract(init_params, spec)


def paper_prior() -> PriorSpec:
    """The paper's diffusion prior: width 2048, 24 blocks, 32 heads, context 256 (2204.06125, table 3).

    It reads encoded tokens from CLIP. Its 1.2 billion parameters are what the paper's table rounds to "1B".
    """
    return PriorSpec(
        embed_dim=1024,
        context=256,
        text_width=1024,
        width=2048,
        depth=24,
        heads=32,
        dtype="bfloat16",
        remat=True,
        scan=True,
    )
