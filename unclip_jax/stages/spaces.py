"""The spaces that a diffusion stage works in: pixels as they are, embeddings normalised.

(1) normalise(z_i) = (z_i - mean) / std        Karlo's whitening; mean = 0 and std = 1/17.2 is the paper's scaling
(2) of `num_candidates` samples for a caption, the one with the largest z_i . z_t / |z_i| is kept (2204.06125, 2.2)
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from unclip_jax.images.pixels import to_float
from unclip_jax.models.clip import unit
from unclip_jax.stages.encoders import TOWERS, Arrays, Encoder, image_embedding


@struct.dataclass
class EmbeddingStats:
    """Mean and standard deviation of z_i over the training data, measured with the CLIP in use."""

    # Float[Array, " d"] both; shapes and shardings take the place of arrays at times.
    mean: PyTree
    std: PyTree

    def normalise(self, z_i: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """Compute equation (1)."""
        return (z_i - self.mean) / self.std

    def denormalise(self, z: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """Invert equation (1)."""
        return z * self.std + self.mean


class Space:
    """The map between samples of a stage and the array that it writes. `frozen` holds what the stage does not train."""

    TAG: ClassVar[tuple[str, str]]
    limit: ClassVar[float | None]
    """The magnitude that samples are kept in where settings name none; None for no bound."""
    encoders: ClassVar[tuple[str, ...]] = ()
    """Encoders that it needs."""
    needs_stats: ClassVar[bool] = False
    """Whether `frozen` must have the statistics of z_i, "stats"."""
    ranks: ClassVar[bool] = False
    """Whether it can choose among several samples for one example."""

    def towers(self, brought: Collection[str]) -> frozenset[str]:
        """Return the towers of CLIP that training needs for it, see `Stage.towers`; both where it does not say."""
        del brought
        return TOWERS if "clip" in self.encoders else frozenset()

    @staticmethod
    def variants() -> dict[str, type]:
        """Return spaces by their name in JSON."""
        return SPACES

    def target(self, name: str, frozen: Mapping[str, PyTree], batch: Arrays) -> Float[Array, " b *dims"]:
        """Return the array `name` of a training batch, as the stage writes it."""
        raise NotImplementedError

    def normalise(self, x: Float[Array, " b *dims"], frozen: Mapping[str, PyTree]) -> Float[Array, " b *dims"]:
        """Map x into the space that the network works in."""
        del frozen
        return x

    def denormalise(self, x_0: Float[Array, " b *dims"], frozen: Mapping[str, PyTree]) -> Float[Array, " b *dims"]:
        """Invert `normalise`, as sampling does."""
        del frozen
        return x_0

    def best(self, x: Float[Array, " bk *dims"], cond: PyTree, count: int) -> Float[Array, " b *dims"]:
        """Choose the best of `count` neighbouring samples for each example; `cond` has one row per example."""
        del cond, count
        return x


@dataclasses.dataclass(frozen=True)
class Pixels(Space):
    """Images in [-1, 1]; training takes a random crop, `image_crop`, where the batch has one."""

    TAG: ClassVar = ("space", "pixels")
    limit: ClassVar = 1.0

    def target(self, name: str, frozen: Mapping[str, PyTree], batch: Arrays) -> Float[Array, "b h w 3"]:
        del frozen
        return to_float(batch["image_crop"] if "image_crop" in batch else batch[name])


@dataclasses.dataclass(frozen=True)
class Embeddings(Space):
    """CLIP's image embeddings, equations (1) and (2)."""

    TAG: ClassVar = ("space", "embeddings")
    limit: ClassVar = None
    encoders: ClassVar = ("clip",)
    needs_stats: ClassVar = True
    ranks: ClassVar = True

    def towers(self, brought: Collection[str]) -> frozenset[str]:
        return frozenset() if "z_i" in brought else frozenset({"image"})

    def target(self, name: str, frozen: Mapping[str, PyTree], batch: Arrays) -> Float[Array, "b d"]:
        del name
        return image_embedding(frozen, batch)

    def normalise(self, x: Float[Array, "b d"], frozen: Mapping[str, PyTree]) -> Float[Array, "b d"]:
        return frozen["stats"].normalise(x)

    def denormalise(self, x_0: Float[Array, "b d"], frozen: Mapping[str, PyTree]) -> Float[Array, "b d"]:
        z_i, encoder = frozen["stats"].denormalise(x_0), frozen["clip"]
        assert isinstance(encoder, Encoder)
        return unit(z_i) if encoder.clip.embedding == "unit" else z_i

    def best(self, x: Float[Array, "bk d"], cond: PyTree, count: int) -> Float[Array, "b d"]:
        """Compute equation (2)."""
        z_i = x.reshape(-1, count, x.shape[-1])
        likeness = jnp.einsum("bcd,bd->bc", unit(z_i), cond.z_t)
        return jnp.take_along_axis(z_i, jnp.argmax(likeness, axis=1)[:, None, None], axis=1)[:, 0]


SPACES: dict[str, type[Space]] = {cls.TAG[1]: cls for cls in (Pixels, Embeddings)}
