"""Conditioning inputs of the denoisers: pytrees whose `null()` is the unconditional twin, for guidance."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class EncodedCaption:
    """A caption as the networks behind CLIP read it; `mask` is True from the first token to end-of-text."""

    z_t: Float[Array, "b d"]
    hidden: Float[Array, "b n w"]
    mask: Bool[Array, "b n"]

    def replaced(self, drop: Bool[Array, " b"], other: "EncodedCaption") -> "EncodedCaption":
        """Return `other` in the rows where `drop` is True."""

        def choose(mine: Array, theirs: Array) -> Array:
            return jnp.where(drop.reshape(-1, *[1] * (mine.ndim - 1)), theirs, mine)

        return jax.tree.map(choose, self, other)


@struct.dataclass
class PriorCond:
    """Of the prior. Exactly one of `hidden` (CLIP's) and `tokens` is set; `mask` is True on real tokens.

    Where `drop_text` is True the caption is replaced: by learned null embeddings, or by `empty` if the spec says so.
    """

    z_t: Float[Array, "b d"]
    mask: Bool[Array, "b n"]
    drop_text: Bool[Array, " b"]
    hidden: Float[Array, "b n w"] | None = None
    tokens: Int[Array, "b n"] | None = None
    empty: EncodedCaption | None = None

    def null(self) -> "PriorCond":
        """Return the unconditional condition, for classifier-free guidance."""
        return dataclasses.replace(self, drop_text=jnp.ones_like(self.drop_text))


@struct.dataclass
class UNetCond:
    """Of a decoder (`z_i` and a caption: `tokens`, or `hidden` with `z_t`) or an upsampler (`low_res`).

    `low_res` and `masked_image` have the size of x_t; the latter is the image, 0 under the mask, and the mask. Where
    `drop_z_i` or `drop_text` is True, learned null embeddings stand in; for the caption `empty` does if the spec says
    so.
    """

    z_i: Float[Array, "b d"] | None = None
    tokens: Int[Array, "b n"] | None = None
    hidden: Float[Array, "b n w"] | None = None
    z_t: Float[Array, "b d"] | None = None
    mask: Bool[Array, "b n"] | None = None
    drop_z_i: Bool[Array, " b"] | None = None
    drop_text: Bool[Array, " b"] | None = None
    empty: EncodedCaption | None = None
    low_res: Float[Array, "b h w 3"] | None = None
    masked_image: Float[Array, "b h w 4"] | None = None

    def null(self) -> "UNetCond":
        """Return the unconditional condition, for classifier-free guidance; pixels stay."""
        return dataclasses.replace(
            self,
            drop_z_i=None if self.drop_z_i is None else jnp.ones_like(self.drop_z_i),
            drop_text=None if self.drop_text is None else jnp.ones_like(self.drop_text),
        )
