"""Conditions of diffusion networks: each in one place, for training and sampling alike.

A condition turns named arrays into fields of a network's `Cond`, with the encoders that it needs, and only into those
that the network reads (`Denoiser.cond_fields`). In training it drops itself for a share of the examples, so that
classifier-free guidance has an unconditional model (Ho and Salimans, 2207.12598); in sampling nothing is dropped.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.images.degrade import LowRes
from unclip_jax.images.masks import random_masks
from unclip_jax.models.base import Denoiser
from unclip_jax.stages.encoders import TOWERS, Arrays, empty_caption, image_embedding, text_features
from unclip_jax.stages.random import DEGRADE, DROP_TEXT, DROP_Z_I, MASK, random_drop, stream

Fields = dict[str, PyTree]
Frozen = Mapping[str, PyTree]


class Condition:
    """One kind of conditioning; a frozen dataclass, JSON in and out."""

    TAG: ClassVar[tuple[str, str]]
    encoders: ClassVar[tuple[str, ...]] = ()
    """Encoders that it needs."""

    @staticmethod
    def variants() -> dict[str, type]:
        """Return conditions by their name in JSON."""
        return CONDITIONS

    def reads(self, network: Denoiser) -> tuple[str, ...]:
        """Return the names of the arrays that sampling needs for it."""
        del network
        return ()

    def towers(self, network: Denoiser, brought: Collection[str]) -> frozenset[str]:
        """Return the towers of CLIP that training needs for it, see `Stage.towers`; both where it does not say."""
        del network, brought
        return TOWERS if "clip" in self.encoders else frozenset()

    def train(
        self, network: Denoiser, frozen: Frozen, batch: Arrays, x_0: Float[Array, " b *dims"], keys: Key[Array, " b"]
    ) -> Fields:
        """Return the fields for training on x_0, dropped at random."""
        raise NotImplementedError

    def sample(self, network: Denoiser, frozen: Frozen, arrays: Arrays, count: int) -> Fields:
        """Return the fields for `count` samples, nothing dropped."""
        raise NotImplementedError

    def derive(self, network: Denoiser, x_0: Float[Array, "b h w 3"]) -> dict[str, Array]:
        """Return, made of images x_0, what sampling reads and no training batch brings: for previews."""
        del network, x_0
        return {}

    def null(self, fields: Fields) -> Fields:
        """Return `fields` of `sample` as the unconditional side of guidance has them."""
        return fields

    def drops(self, network: Denoiser) -> bool:
        """Return whether training drops it at times, so that the network works without it too."""
        del network
        return False

    def dropped_at(self, rate: float) -> "Condition":
        """Return it, dropped for another share of the examples; the same where it is never dropped."""
        del rate
        return self

    def of_weights(self, trained: "Condition") -> "Condition":
        """Return the condition, of the same class, that weights were trained with, trained as this one is: how often it
        is dropped stays."""
        del trained
        return self

    def check(self, network: Denoiser) -> None:
        """Raise UserError where the network cannot be conditioned so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPImage(Condition):
    """z_i, CLIP's embedding of the image: the fields `z_i` [b d] and `drop_z_i` [b]."""

    TAG: ClassVar = ("condition", "clip_image")
    encoders: ClassVar = ("clip",)

    drop: float = 0.1
    """Share of examples that train without it."""

    def reads(self, network: Denoiser) -> tuple[str, ...]:
        return ("z_i",) if "z_i" in network.cond_fields else ()

    def towers(self, network: Denoiser, brought: Collection[str]) -> frozenset[str]:
        return frozenset({"image"} if "z_i" in network.cond_fields and "z_i" not in brought else ())

    def train(self, network, frozen, batch, x_0, keys) -> Fields:
        del x_0
        if "z_i" not in network.cond_fields:
            return {}
        return {"z_i": image_embedding(frozen, batch), "drop_z_i": random_drop(keys, self.drop, DROP_Z_I)}

    def sample(self, network, frozen, arrays, count) -> Fields:
        if "z_i" not in network.cond_fields:
            return {}
        return {"z_i": image_embedding(frozen, arrays), "drop_z_i": jnp.zeros(count, bool)}

    def drops(self, network: Denoiser) -> bool:
        return self.drop > 0 and "z_i" in network.cond_fields

    def dropped_at(self, rate: float) -> "CLIPImage":
        return dataclasses.replace(self, drop=rate)

    def null(self, fields: Fields) -> Fields:
        return fields | {"drop_z_i": jnp.ones_like(fields["drop_z_i"])} if "drop_z_i" in fields else fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption(Condition):
    """A caption, as token ids for an encoder of the network's own, as CLIP's hidden states and z_t, or both: the fields
    `tokens` [b n], `hidden` [b n w], `z_t` [b d], `mask` [b n], `empty` and `drop_text` [b].
    """

    TAG: ClassVar = ("condition", "caption")
    encoders: ClassVar = ("clip",)

    drop: float = 0.5
    """Share of examples that train without it."""

    def reads(self, network: Denoiser) -> tuple[str, ...]:
        return ("tokens", "mask") if "drop_text" in network.cond_fields else ()

    def towers(self, network: Denoiser, brought: Collection[str]) -> frozenset[str]:
        encoded = ({"hidden", "z_t"} & network.cond_fields).difference(brought)
        return frozenset({"text"} if encoded or "empty" in network.cond_fields else ())

    def train(self, network, frozen, batch, x_0, keys) -> Fields:
        del x_0
        fields = self._encode(network, frozen, batch)
        return fields | {"drop_text": random_drop(keys, self.drop, DROP_TEXT)} if fields else fields

    def sample(self, network, frozen, arrays, count) -> Fields:
        fields = self._encode(network, frozen, arrays)
        return fields | {"drop_text": jnp.zeros(count, bool)} if fields else fields

    def drops(self, network: Denoiser) -> bool:
        return self.drop > 0 and "drop_text" in network.cond_fields

    def dropped_at(self, rate: float) -> "Caption":
        return dataclasses.replace(self, drop=rate)

    def null(self, fields: Fields) -> Fields:
        return fields | {"drop_text": jnp.ones_like(fields["drop_text"])} if "drop_text" in fields else fields

    def _encode(self, network: Denoiser, frozen: Frozen, arrays: Arrays) -> Fields:
        wanted = network.cond_fields
        if "drop_text" not in wanted:
            return {}
        fields: Fields = {"mask": arrays["mask"]}
        if "tokens" in wanted:
            fields["tokens"] = arrays["tokens"]
        states = [name for name in ("z_t", "hidden") if name in wanted]
        if all(arrays.get(name) is not None for name in states):
            fields |= {name: arrays[name] for name in states}
        else:
            text = text_features(frozen, arrays)
            fields |= {name: getattr(text, name) for name in states}
        if "empty" in wanted:
            fields["empty"] = empty_caption(frozen["clip"], arrays["tokens"])
        return fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowResImage(Condition):
    """The image of the stage before, enlarged: the field `low_res` [b h w 3]. Training makes it of the image itself."""

    TAG: ClassVar = ("condition", "low_res")

    low_res: LowRes
    """Its scale, and its degradation in training."""

    def reads(self, network: Denoiser) -> tuple[str, ...]:
        return (f"image_{network.sample_shape[0] // self.low_res.scale}",)

    def of_weights(self, trained: Condition) -> "LowResImage":
        assert isinstance(trained, LowResImage)
        return dataclasses.replace(self, low_res=dataclasses.replace(self.low_res, scale=trained.low_res.scale))

    def train(self, network, frozen, batch, x_0, keys) -> Fields:
        del network, frozen, batch
        return {"low_res": self.low_res.condition(self.low_res.from_high(x_0, stream(keys, DEGRADE)))}

    def sample(self, network, frozen, arrays, count) -> Fields:
        del frozen, count
        (name,) = self.reads(network)
        return {"low_res": self.low_res.condition(arrays[name])}

    def derive(self, network: Denoiser, x_0: Float[Array, "b h w 3"]) -> dict[str, Array]:
        (name,) = self.reads(network)
        return {name: self.low_res.from_high(x_0, jax.random.split(jax.random.key(0), len(x_0)))}

    def check(self, network: Denoiser) -> None:
        side = network.sample_shape[0]
        if "low_res" not in network.cond_fields:
            raise UserError("the network takes no low-resolution image; set low_res")
        if side % self.low_res.scale:
            raise UserError(f"{side} px is not {self.low_res.scale} times a whole number of pixels; use another scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InpaintMask(Condition):
    """The masked image and its mask, for a network that was trained for inpainting: the field `masked_image` [b h w 4].

    In sampling the arrays `known_image` [b h w 3] and `mask_to_fill` [b h w] are optional: without them the mask covers
    everything.
    """

    TAG: ClassVar = ("condition", "inpaint_mask")

    full_rate: float = 0.5
    """Share of examples that train with a mask that covers everything, which keeps it a network for whole images."""

    def drops(self, network: Denoiser) -> bool:
        return self.full_rate > 0 and "masked_image" in network.cond_fields

    def dropped_at(self, rate: float) -> "InpaintMask":
        return dataclasses.replace(self, full_rate=rate)

    def train(self, network, frozen, batch, x_0, keys) -> Fields:
        del frozen, batch
        if "masked_image" not in network.cond_fields:
            return {}
        mask = random_masks(stream(keys, MASK), x_0.shape[1], self.full_rate)
        return {"masked_image": inpaint_cond(x_0, mask)}

    def sample(self, network, frozen, arrays, count) -> Fields:
        del frozen
        if "masked_image" not in network.cond_fields:
            return {}
        if arrays.get("mask_to_fill") is not None:
            return {"masked_image": inpaint_cond(arrays["known_image"], arrays["mask_to_fill"])}
        shape = count, *network.sample_shape[:2]
        return {"masked_image": inpaint_cond(jnp.zeros((*shape, 3)), jnp.ones(shape, bool))}


def inpaint_cond(images: Float[Array, "b h w 3"], mask: Bool[Array, "b h w"]) -> Float[Array, "b h w 4"]:
    """Return the image, 0 under the mask, and the mask as a fourth channel."""
    mask = mask[..., None]
    return jnp.concatenate([jnp.where(mask, 0.0, images), mask.astype(images.dtype)], axis=-1)


CONDITIONS: dict[str, type[Condition]] = {cls.TAG[1]: cls for cls in (CLIPImage, Caption, LowResImage, InpaintMask)}
