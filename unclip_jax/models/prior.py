"""The diffusion prior: P(z_i | y), a causal Transformer that denoises CLIP image embeddings (2204.06125, section 2.2).

(1) s = [ W_h h_1 .. W_h h_n | W_t z_t | e(t) | W_z z_i^(t) | q ] + positions
(2) f(z_i^(t), t, y) = W_o LN(Transformer(s, causal and padding mask))[-1]

`h` are the caption's encoded tokens: CLIP's hidden states, or the output of an encoder of the prior's own. `q` is a
learned query. f predicts the clean embedding: L = E |f(z_i^(t), t, y) - z_i|^2 (paper, equation 2).

The network lives in the normalised space of z_i (`unclip_jax.stages.spaces`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.base import Denoiser, Dtype, Null, apply_module, check_heads, check_sizes, init_module, require
from unclip_jax.models.clip import TextSpec
from unclip_jax.models.cond import EncodedCaption, PriorCond
from unclip_jax.models.rules import BLOCKS, EMBEDDINGS, REST
from unclip_jax.models.text_encoder import TextEncoder
from unclip_jax.nn.attention import Implementation
from unclip_jax.nn.embeddings import TimestepMLP
from unclip_jax.nn.norms import layer_norm
from unclip_jax.nn.remat import Remat
from unclip_jax.nn.transformer import Transformer, causal_mask
from unclip_jax.parallel.rules import Rules


@dataclass(frozen=True, kw_only=True)
class PriorSpec(Denoiser):
    """`text` describes an encoder of token ids that the prior owns; without it the caption comes as CLIP hidden states
    of `text_width`. `context` is the number of text positions. `z_t_scale` multiplies z_t at the entrance. `null` says
    what stands for no caption; the encoding of the empty one needs CLIP hidden states.
    """

    TAG: ClassVar = ("network", "prior")
    RENAMED: ClassVar = {"depth": "num_layers", "heads": "num_heads"}
    Cond: ClassVar = PriorCond

    embed_dim: int
    context: int
    text_width: int
    width: int
    num_layers: int
    num_heads: int
    text: TextSpec | None = None
    z_t_scale: float = 1.0
    null: Null = "learned"
    dtype: Dtype = "float32"
    remat: Remat = False
    scan: bool = False
    attention: Implementation = "xla"

    def __post_init__(self) -> None:
        check_sizes("prior", self)
        check_heads("prior", self.width, self.num_heads)
        if self.null == "empty_caption" and self.text is not None:
            raise UserError("prior: null empty_caption needs CLIP hidden states; leave text out")
        if self.text is not None and self.text.context != self.context:
            raise UserError(
                f"prior: context is {self.context} but text.context is {self.text.context}; make them equal"
            )

    @property
    def cond_fields(self) -> frozenset[str]:
        caption = {"hidden"} if self.text is None else {"tokens"}
        return frozenset(
            {"z_t", "mask", "drop_text"} | caption | ({"empty"} if self.null == "empty_caption" else set())
        )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self.embed_dim,)

    def apply(
        self,
        params: Params,
        x_t: Float[Array, "b d"],
        time: Float[Array, " b"],
        cond: PriorCond,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b d"]:
        """Compute equation (2): the prediction for normalised embeddings x_t; there is no dropout."""
        del dropout_keys
        return apply_module(Prior(self), params, x_t, time, cond)

    def init(self, key: Key[Array, ""]) -> Params:
        z_t, mask = jnp.zeros((1, self.embed_dim)), jnp.ones((1, self.context), bool)
        hidden = jnp.zeros((1, self.context, self.text_width))
        cond = PriorCond(
            z_t=z_t,
            mask=mask,
            drop_text=jnp.zeros(1, bool),
            hidden=hidden if self.text is None else None,
            tokens=jnp.zeros((1, self.context), jnp.int32) if self.text is not None else None,
            empty=EncodedCaption(z_t=z_t, hidden=hidden, mask=mask) if self.null == "empty_caption" else None,
        )
        return init_module(Prior(self), key, jnp.zeros((1, self.embed_dim)), jnp.zeros(1), cond)

    def sharding_rules(self) -> Rules:
        return (*BLOCKS, *(() if self.text is None else EMBEDDINGS), *REST)

    def shared_sizes(self) -> dict[str, int]:
        own = {"text_width": self.text_width, "context": self.context}
        return {"embed_dim": self.embed_dim} | (own if self.text is None else self.text.shared_sizes())

    def fitted(self, sizes: Mapping[str, int]) -> "PriorSpec":
        taken = {name: sizes[name] for name in ("embed_dim", "text_width", "context") if name in sizes}
        text = None if self.text is None else self.text.fitted(sizes)
        return dataclasses.replace(self, **taken, text=text)

    def describe(self) -> str:
        return f"width {self.width}, {self.num_layers} layers"


class Prior(nn.Module):
    """Equations (1) and (2)."""

    spec: PriorSpec

    @nn.compact
    def __call__(self, x_t: Float[Array, "b d"], t: Float[Array, " b"], cond: PriorCond) -> Float[Array, "b d"]:
        spec, dtype = self.spec, jnp.dtype(self.spec.dtype)
        normal = nn.initializers.normal
        b = x_t.shape[0]

        if spec.text is None:
            hidden = require(cond.hidden, "hidden")
        else:
            hidden = TextEncoder(spec.text, dtype, spec.remat, spec.scan, spec.attention, name="text")(
                require(cond.tokens, "tokens"), cond.mask
            )
        caption = EncodedCaption(z_t=cond.z_t, hidden=hidden, mask=cond.mask)
        if spec.null == "empty_caption":
            caption = caption.replaced(cond.drop_text, require(cond.empty, "empty"))
        text = nn.Dense(spec.width, dtype=dtype, name="text_in")(caption.hidden)
        z_t = nn.Dense(spec.width, dtype=dtype, name="z_t_in")(caption.z_t * spec.z_t_scale)[:, None]
        mask = caption.mask
        if spec.null == "learned":
            drop = cond.drop_text[:, None, None]
            text = jnp.where(drop, self.param("null_text", normal(0.02), (spec.width,)).astype(dtype), text)
            z_t = jnp.where(drop, self.param("null_z_t", normal(0.02), (spec.width,)).astype(dtype), z_t)
            mask = mask | cond.drop_text[:, None]

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
            spec.num_layers,
            spec.num_heads,
            dtype=dtype,
            remat=spec.remat,
            scan=spec.scan,
            implementation=spec.attention,
            name="transformer",
        )(sequence, mask)
        out = layer_norm(dtype, "norm_out")(out[:, -1])
        return nn.Dense(spec.embed_dim, dtype=jnp.float32, name="out")(out)


def paper_prior() -> PriorSpec:
    """Return the paper's diffusion prior: width 2048, 24 blocks, 32 heads, context 256 (2204.06125, table 3).

    It reads encoded tokens from CLIP. Its 1.2 billion parameters are what the paper's table rounds to "1B".
    """
    return PriorSpec(
        embed_dim=1024,
        context=256,
        text_width=1024,
        width=2048,
        num_layers=24,
        num_heads=32,
        dtype="bfloat16",
        remat=True,
        scan=True,
    )
