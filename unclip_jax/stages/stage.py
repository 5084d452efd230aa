"""The interface between networks and systems: a stage says what a trained network does there.

(1) writes = sample(options, weights, rows, noise)           named arrays in, one named array out
(2) loss(params, target, frozen, batch, keys)                one number per example, to be minimised

A stage is frozen and hashable, holds no arrays and goes to JSON and back. It selects the programs that are compiled for
it. Names of arrays are the same everywhere:

    image_64          images of 64 px: uint8 [b 64 64 3] in a training batch, float32 in [-1, 1] between stages
    image_crop        random squares of the largest images of a training batch, uint8 [b h w 3]
    z_i, z_t          CLIP's embeddings of an image and of a caption, float32 [b d]
    tokens, mask      a caption as token ids int32 [b n], and which of them are real, bool [b n]
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.noise import KeyNoise, NoiseSource
from unclip_jax.models.base import Network
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.parallel.rules import Rules
from unclip_jax.stages.encoders import TOWERS, Arrays, abstract_encoder
from unclip_jax.stages.exhibits import Exhibit
from unclip_jax.stages.settings import Options, SamplingSettings
from unclip_jax.stages.spaces import EmbeddingStats

Batch = dict[str, jax.Array]
StageMetrics = dict[str, tuple[Float[Array, " b"], Float[Array, " b"]]]
"""By name: values and weights of every example; reported is sum(value * weight) / sum(weight)."""
Encoders = Mapping[str, Network]


@struct.dataclass
class Weights:
    """What a stage computes with: its own parameters, and what it needs and does not train."""

    params: Params
    frozen: dict[str, PyTree] = dataclasses.field(default_factory=dict)


class Stage:
    """What a trained network does in a system; a frozen dataclass."""

    TAG: ClassVar[tuple[str, str]]
    network: Network
    """What is trained."""

    @staticmethod
    def variants() -> dict[str, type]:
        """Return stages by their name in JSON."""
        return STAGES

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the arrays that sampling takes."""
        return ()

    @property
    def writes(self) -> str:
        """Name of the array that sampling makes; "" for a stage that makes none."""
        return ""

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the frozen networks that it needs."""
        return ()

    @property
    def needs_stats(self) -> bool:
        """Whether `frozen` must have the statistics of z_i, "stats"."""
        return False

    def init(self, key: Key[Array, ""]) -> Params:
        """Return random parameters, float32."""
        return self.network.init(key)

    def sharding_rules(self) -> Rules:
        """Return where the parameters live on a mesh."""
        return self.network.sharding_rules()

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], StageMetrics]:
        """Return the loss of every example, and metrics.

        Args:
            params: what is trained.
            target: their moving average, for losses that compare with it.
            frozen: encoders and statistics that are not trained, {} if none: an argument, so that it is never compiled
                in as a constant.
            keys: the examples' own, the only randomness to use.
        """
        raise NotImplementedError

    @property
    def image_size(self) -> int | None:
        """Side in px of the images that it writes; None if it writes something else."""
        return None

    def sample(self, options: Options, weights: Weights, rows: Arrays, noise: NoiseSource) -> Float[Array, "b ..."]:
        """Compute equation (1); pure, an operation that `unclip_jax.stages.compiled` compiles.

        Args:
            rows: named arrays [b ...] that it reads, any of them None; `x_T` among them is the start, instead of the
                noise's own.
            noise: as `Stage.noise` makes it.
        """
        raise NotImplementedError

    def noise(self, key: Key[Array, ""], indices: Int[Array, " b"], settings: SamplingSettings) -> KeyNoise:
        """Return the noise of the examples with these numbers."""
        del settings
        return KeyNoise(key=key, indices=indices)

    def check_settings(self, name: str, settings: SamplingSettings) -> None:
        """Raise UserError for settings that do not suit the stage; `name` is what they are of."""

    def towers(self, brought: Collection[str] = ()) -> frozenset[str]:
        """Return which towers of CLIP training needs, "image" and "text", where its batches bring the arrays `brought`,
        computed before, of z_i and z_t; both where it does not say."""
        del brought
        return TOWERS if "clip" in self.encoders else frozenset()

    def image_sizes(self, encoders: Encoders, brought: Collection[str] = ()) -> tuple[int, ...]:
        """Return the sides in px of the images that a training batch has to bring, where it brings `brought`, too."""
        raise NotImplementedError

    def context(self, encoders: Encoders) -> int | None:
        """Return the number of tokens of the captions that a training batch has to bring; None for no captions."""
        clip = encoders.get("clip")
        return clip.text_tower.context if isinstance(clip, CLIPSpec) else None

    def abstract_frozen(self, encoders: Encoders) -> dict[str, PyTree]:
        """Return what `loss` takes as `frozen`, as shapes."""
        frozen: dict[str, PyTree] = {name: abstract_encoder(encoders[name]) for name in self.encoders}
        if self.needs_stats:
            clip = encoders["clip"]
            assert isinstance(clip, CLIPSpec), "statistics are those of CLIP's embeddings"
            vector = jax.ShapeDtypeStruct((clip.embed_dim,), np.float32)
            frozen["stats"] = EmbeddingStats(mean=vector, std=vector)
        return frozen

    @property
    def judged_by(self) -> tuple[str, bool]:
        """Name of the score by which the best checkpoint is chosen, and whether more of it is better."""
        return "loss", False

    def measure(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[StageMetrics, dict[str, Array]]:
        """Return what an evaluation measures: metrics of every example, and arrays [b ...] that `score` takes; pure.

        What it does to an example may depend on nothing but the example and its key.
        """
        loss, metrics = self.loss(params, params, frozen, batch, keys)
        return {"loss": (loss, jnp.ones_like(loss))} | metrics, {}

    def score(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return what takes all examples of an evaluation together, from the arrays [n ...] of `measure`."""
        del arrays
        return {}

    def memorised(self, training: Mapping[str, float], held_out: Mapping[str, float], count: int) -> str | None:
        """Return a line where the scores of `count` training examples and of as many held-out ones are so far apart
        that it has learnt the former by heart; None otherwise."""
        del training, held_out, count
        return None

    @property
    def num_previewed(self) -> int:
        """Examples that a preview in training shows; 0 for a stage that has nothing to show."""
        return 0

    def preview(self, weights: Weights, batch: Batch) -> Exhibit:
        """Return what there is to see of the first examples of a training batch of whole images; pure, to be compiled.

        Only for a stage with `num_previewed` above 0.
        """
        raise NotImplementedError

    def draw(
        self, weights: Weights, batch: Batch, noise: NoiseSource
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h w 3"]]:
        """Return the images of a training batch of whole ones that it would write, and what it samples in their place;
        pure. Only for a stage with an `image_size`."""
        raise NotImplementedError

    def remarks_on_sizes(self, batch_size: int, num_records: int, microbatches: int, hard: bool) -> Iterator[str]:
        """Yield what a person should know of the sizes of a run alone, a line each.

        Args:
            batch_size: examples in the global batch, which is cut into `microbatches`.
            num_records: examples that there are.
            hard: whether the data make hard negatives.
        """
        del microbatches, hard
        if batch_size > num_records:
            yield crowded(batch_size, num_records)

    def remarks_on_batch(self, batch: Mapping[str, np.ndarray], repeated: bool) -> Iterator[str]:
        """Yield what the first training batch, or one host's rows of it, shows that a person should know.

        Args:
            repeated: whether it is larger than the data, so that it must have copies.
        """
        del batch, repeated
        yield from ()

    def check(self) -> None:
        """Raise UserError where network and stage do not fit each other."""

    def describe(self) -> str:
        """Return a line for a person."""
        return self.TAG[1]


STAGES: dict[str, type[Stage]] = {}
"""Stage classes by their name in JSON; see `unclip_jax.stages`."""


def crowded(batch_size: int, num_records: int, harm: str = "") -> str:
    """Return the remark on a batch that is larger than the data."""
    data = f"the data, {num_records} picture{'s' * (num_records > 1)}"
    each = f"{batch_size / num_records:.3g} times"
    advice = f"--data.batch-size {num_records} has each once"
    return f"a batch of {batch_size} is more than {data}: each is in it {each}{harm}; {advice}"


def array_shape(name: str, encoders: Encoders) -> jax.ShapeDtypeStruct:
    """Return the shape of one row of a named array between stages, without its batch dimension.

    Raises UserError for a name that is not known.
    """
    kind, _, side = name.rpartition("_")
    if kind == "image" and side.isdecimal():
        return jax.ShapeDtypeStruct((int(side), int(side), 3), np.float32)
    clip = encoders.get("clip")
    if isinstance(clip, CLIPSpec):
        match name:
            case "z_i" | "z_t":
                return jax.ShapeDtypeStruct((clip.embed_dim,), np.float32)
            case "tokens":
                return jax.ShapeDtypeStruct((clip.text_tower.context,), np.int32)
            case "mask":
                return jax.ShapeDtypeStruct((clip.text_tower.context,), np.bool_)
    raise UserError(f"no array is called {name!r}; known are image_SIZE, z_i, z_t, tokens and mask")
