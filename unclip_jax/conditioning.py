"""From captions and embeddings to what the networks are told: the one place, for training and for sampling."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.models import clip
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import PriorCond, PriorSpec
from unclip_jax.models.unet import UNetCond, UNetSpec
from unclip_jax.typing import Params


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
        return dataclasses.replace(cond, hidden=text.hidden, z_t=text.z_t, mask=mask, drop_text=no_drop)
    return cond
