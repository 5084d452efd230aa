"""A stage of which an adapter is trained: its parameters are the adapter's, and what it adapts is frozen.

(1) loss(adapter, frozen, ...) = base.loss(merge(frozen[BASE], adapter), frozen, ...)          likewise for sampling

so that the gradient, the optimiser's moments and the moving average are those of the adapter alone. Of the weights that
it adapts there is one copy, which lies on a mesh as an encoder's do.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from unclip_jax.adapters.lora import LoRAConfig, adapter_rules, layers_of, merge, new_adapter
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.noise import KeyNoise, NoiseSource
from unclip_jax.models.base import Network
from unclip_jax.parallel.rules import Rules
from unclip_jax.stages.encoders import Arrays, abstract_encoder
from unclip_jax.stages.exhibits import Exhibit
from unclip_jax.stages.settings import Options, SamplingSettings
from unclip_jax.stages.stage import Batch, Encoders, Stage, StageMetrics, Weights

BASE = "adapted"
"""Where `frozen` has the network that is adapted, as an `Encoder`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptedStage(Stage):
    """Equation (1)."""

    TAG: ClassVar = ("stage", "adapted")

    base: Stage
    """What is adapted."""
    lora: LoRAConfig

    @property
    def network(self) -> Network:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the stage that is adapted."""
        return self.base.network

    @property
    def reads(self) -> tuple[str, ...]:
        return self.base.reads

    @property
    def writes(self) -> str:
        return self.base.writes

    @property
    def encoders(self) -> tuple[str, ...]:
        return self.base.encoders

    @property
    def needs_stats(self) -> bool:
        return self.base.needs_stats

    @property
    def image_size(self) -> int | None:
        return self.base.image_size

    def init(self, key: Key[Array, ""]) -> Params:
        return new_adapter(self.network.abstract_params(), self.lora, key)

    def sharding_rules(self) -> Rules:
        return adapter_rules(self.base.sharding_rules(), self.network.abstract_params(), self.lora)

    def merged(self, params: Params, frozen: PyTree) -> Params:
        """Return the network's parameters with the adapter's in them."""
        return merge(frozen[BASE].params, params, dict.fromkeys(layers_of(params), self.lora.scale))

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], StageMetrics]:
        return self.base.loss(self.merged(params, frozen), self.merged(target, frozen), frozen, batch, keys)

    @property
    def judged_by(self) -> tuple[str, bool]:
        return self.base.judged_by

    def measure(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[StageMetrics, dict[str, Array]]:
        return self.base.measure(self.merged(params, frozen), frozen, batch, keys)

    def score(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        return self.base.score(arrays)

    def memorised(self, training: Mapping[str, float], held_out: Mapping[str, float], count: int) -> str | None:
        return self.base.memorised(training, held_out, count)

    @property
    def num_previewed(self) -> int:
        return self.base.num_previewed

    def preview(self, weights: Weights, batch: Batch) -> Exhibit:
        return self.base.preview(self._whole(weights), batch)

    def draw(
        self, weights: Weights, batch: Batch, noise: NoiseSource
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h w 3"]]:
        return self.base.draw(self._whole(weights), batch, noise)

    def sample(self, options: Options, weights: Weights, rows: Arrays, noise: NoiseSource) -> Float[Array, "b ..."]:
        return self.base.sample(options, self._whole(weights), rows, noise)

    def noise(self, key: Key[Array, ""], indices: Int[Array, " b"], settings: SamplingSettings) -> KeyNoise:
        return self.base.noise(key, indices, settings)

    def check_settings(self, name: str, settings: SamplingSettings) -> None:
        self.base.check_settings(name, settings)

    def towers(self, brought: Collection[str] = ()) -> frozenset[str]:
        return self.base.towers(brought)

    def image_sizes(self, encoders: Encoders, brought: Collection[str] = ()) -> tuple[int, ...]:
        return self.base.image_sizes(encoders, brought)

    def context(self, encoders: Encoders) -> int | None:
        return self.base.context(encoders)

    def abstract_frozen(self, encoders: Encoders) -> dict[str, PyTree]:
        return self.base.abstract_frozen(encoders) | {BASE: abstract_encoder(self.network)}

    def check(self) -> None:
        self.base.check()
        self.lora.layers(self.network.abstract_params())

    def describe(self) -> str:
        return f"{self.base.describe()}, an adapter of rank {self.lora.rank}"

    def _whole(self, weights: Weights) -> Weights:
        return Weights(params=self.merged(weights.params, weights.frozen), frozen=weights.frozen)
