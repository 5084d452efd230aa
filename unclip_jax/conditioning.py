"""From captions and embeddings to what the networks are told: the one place, for training and for sampling."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.core.typing import Params
from unclip_jax.models import clip
from unclip_jax.models.clip import CLIPSpec, EncodedCaption
from unclip_jax.models.prior import PriorCond, PriorSpec
from unclip_jax.models.unet import UNetCond, UNetSpec


def known_part(images: Float[Array, "b h w 3"], hole: Bool[Array, "b h w"]) -> Float[Array, "b h w 4"]:
    """What a network that inpaints is told of the images: their pixels, 0 in the hole, and 1 where that is."""
    hole = hole[..., None]
    return jnp.concatenate([jnp.where(hole, 0.0, images), hole.astype(images.dtype)], axis=-1)


def drawing_whole(spec: UNetSpec, cond: UNetCond, count: int) -> UNetCond:
    """`cond` for drawing `count` whole images: nothing of them is known, for a network that asks."""
    if not spec.inpaints:
        return cond
    shape = count, spec.image_size, spec.image_size
    return dataclasses.replace(cond, known=known_part(jnp.zeros((*shape, 3)), jnp.ones(shape, bool)))


def empty_caption(clip_spec: CLIPSpec, clip_params: Params, tokens: Int[Array, "b n"]) -> EncodedCaption:
    """The encoding of "", once per row of `tokens`, whose first column says what begins a caption.

    A tokenizer pads BOS EOS with a token of its choice. None is needed here: what follows EOS is masked, and a causal
    tower keeps it from what stands before.
    """
    row = jnp.full_like(tokens[:1], clip_spec.text_tower.eos_id).at[:, 0].set(tokens[0, 0])
    text = clip.encode_text(clip_spec, clip_params, row)
    mask = jnp.broadcast_to(jnp.arange(row.shape[1]) < 2, row.shape)
    encoded = EncodedCaption(z_t=text.z_t, hidden=text.hidden, mask=mask)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(tokens), *x.shape[1:])), encoded)


def prior_cond(
    spec: PriorSpec, clip_spec: CLIPSpec, clip_params: Params, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]
) -> PriorCond:
    """What the prior is told about tokenised captions."""
    text = clip.encode_text(clip_spec, clip_params, tokens)
    return PriorCond(
        z_t=text.z_t,
        mask=mask,
        drop=jnp.zeros(len(tokens), bool),
        hidden=text.hidden if spec.text is None else None,
        tokens=None if spec.text is None else tokens,
        empty=empty_caption(clip_spec, clip_params, tokens) if spec.null == "empty_caption" else None,
    )


def decoder_cond(
    spec: UNetSpec,
    clip_spec: CLIPSpec,
    clip_params: Params,
    z_i: Float[Array, "b d"],
    tokens: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
) -> UNetCond:
    """What the decoder is told: z_i and the caption in the form its spec asks for."""
    no_drop = jnp.zeros(len(z_i), bool)
    cond = UNetCond(z_i=z_i, drop_image=no_drop)
    if spec.text is not None:
        return dataclasses.replace(cond, tokens=tokens, mask=mask, drop_text=no_drop)
    if spec.text_width is not None:
        text = clip.encode_text(clip_spec, clip_params, tokens)
        empty = empty_caption(clip_spec, clip_params, tokens) if spec.null == "empty_caption" else None
        return dataclasses.replace(cond, hidden=text.hidden, z_t=text.z_t, mask=mask, drop_text=no_drop, empty=empty)
    return cond
