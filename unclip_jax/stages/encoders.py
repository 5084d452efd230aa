"""Frozen networks that stages need, and what they make of images and captions that data bring as such.

(1) z_i = CLIP(image)            [b d]; or `z_i` of the batch, where it was computed before
(2) z_t, h = CLIP(caption)       [b d], [b n w]; likewise `z_t` and `hidden`
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.images.pixels import to_float
from unclip_jax.models.base import Network
from unclip_jax.models.clip import CLIPSpec, TextFeatures
from unclip_jax.models.cond import EncodedCaption
from unclip_jax.parallel.rules import REPLICATE, match_rules

TOWERS = frozenset({"image", "text"})
"""Of a CLIP."""
Arrays = Mapping[str, PyTree]
"""Named arrays: a batch in training, what earlier stages and the caller give in sampling. An absent one may be None."""


@struct.dataclass
class Encoder:
    """A network with its parameters, a pytree of these; which network it is selects the program."""

    network: Network = struct.field(pytree_node=False)
    params: Params

    @property
    def clip(self) -> CLIPSpec:
        """The network, if it is a CLIP; UserError otherwise."""
        if not isinstance(self.network, CLIPSpec):
            raise UserError(f"this stage needs a CLIP, not a {self.network.TAG[1]}; give it one")
        return self.network

    def encode_image(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Encode images in [-1, 1] of the tower's size: z_i."""
        return self.clip.encode_image(self.params, images)

    def encode_text(self, tokens: Int[Array, "b n"]) -> TextFeatures:
        """Encode tokenised captions: z_t and hidden states."""
        return self.clip.encode_text(self.params, tokens)


def abstract_encoder(network: Network) -> Encoder:
    """Return an encoder whose parameters are shapes."""
    return Encoder(network=network, params=network.abstract_params())


def frozen_shardings(frozen: Mapping[str, PyTree], mesh: Mesh) -> dict[str, PyTree]:
    """Return the shardings of what a stage does not train: encoders by their own rules, everything else whole.

    Raises UserError where the mesh does not divide a parameter.
    """

    def shardings(value: PyTree) -> PyTree:
        if isinstance(value, Encoder):
            # A run that needs no tower of a CLIP has none of its weights.
            rules = value.network.sharding_rules() if value.params else REPLICATE
            return value.replace(params=match_rules(rules, value.params, mesh))  # pyright: ignore[reportAttributeAccessIssue]
        return match_rules(REPLICATE, value, mesh)

    return {name: shardings(value) for name, value in frozen.items()}


def image_embedding(frozen: Mapping[str, PyTree], arrays: Arrays) -> Float[Array, "b d"]:
    """Compute equation (1), with the encoder "clip" and the image of its size."""
    if arrays.get("z_i") is not None:
        return arrays["z_i"]
    encoder: Encoder = frozen["clip"]
    return encoder.encode_image(to_float(arrays[f"image_{encoder.clip.image_tower.image_size}"]))


def text_features(frozen: Mapping[str, PyTree], arrays: Arrays) -> TextFeatures:
    """Compute equation (2), with the encoder "clip"."""
    if arrays.get("z_t") is not None and arrays.get("hidden") is not None:
        return TextFeatures(z_t=arrays["z_t"], hidden=arrays["hidden"])
    return frozen["clip"].encode_text(arrays["tokens"])


def empty_caption(encoder: Encoder, tokens: Int[Array, "b n"]) -> EncodedCaption:
    """Encode "", once per row of `tokens`, whose first column is the token that begins a caption.

    A tokenizer pads BOS EOS with a token of its choice. None is needed here: what follows EOS is masked, and a causal
    tower keeps it from what stands before.
    """
    row = jnp.full_like(tokens[:1], encoder.clip.text_tower.eos_id).at[:, 0].set(tokens[0, 0])
    text = encoder.encode_text(row)
    mask = jnp.broadcast_to(jnp.arange(row.shape[1]) < 2, row.shape)
    encoded = EncodedCaption(z_t=text.z_t, hidden=text.hidden, mask=mask)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(tokens), *x.shape[1:])), encoded)
