"""Several networks of one spec that divide the timesteps among themselves (eDiff-I, 2211.01324, section 4).

(1) expert_i acts where boundaries[i-1] <= time < boundaries[i]

Karlo's upsampler is one of two experts, the second of which takes every step but the last.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.base import Denoiser, Network, check_sizes
from unclip_jax.parallel.rules import Rules


@dataclass(frozen=True, kw_only=True)
class TimestepExperts(Denoiser):
    """`expert` describes each of the networks, one more than there are `boundaries`; their parameters are `expert_0`,
    `expert_1`, ..., the first of which acts where there is the least noise.
    """

    TAG: ClassVar = ("network", "timestep_experts")

    expert: Denoiser
    boundaries: tuple[float, ...]

    def __post_init__(self) -> None:
        check_sizes("experts", self)
        if not self.boundaries or sorted(set(self.boundaries)) != [*self.boundaries]:
            raise UserError(f"boundaries is {self.boundaries}; it must hold one or more ascending times")

    @property
    def Cond(self) -> type:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The experts' own."""
        return self.expert.Cond

    @property
    def cond_fields(self) -> frozenset[str]:
        return self.expert.cond_fields

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.expert.sample_shape

    @property
    def learns_variance(self) -> bool:
        return self.expert.learns_variance

    @property
    def multiple(self) -> int:
        return self.expert.multiple

    @property
    def names(self) -> list[str]:
        """Of the experts, as parameters have them."""
        return [f"expert_{i}" for i in range(len(self.boundaries) + 1)]

    def init(self, key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key, len(self.names))
        return {name: self.expert.init(key) for name, key in zip(self.names, keys, strict=True)}

    def apply(
        self,
        params: Params,
        x_t: Float[Array, " b *dims"],
        time: Float[Array, " b"],
        cond: PyTree,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, " b *channels"]:
        """Apply the expert of equation (1) for the first row's time: in sampling all rows have the same."""
        experts = [partial(self.expert.apply, params[name], dropout_keys=dropout_keys) for name in self.names]
        return jax.lax.switch(jnp.sum(time[0] >= jnp.asarray(self.boundaries)), experts, x_t, time, cond)

    def sharding_rules(self) -> Rules:
        # Some of the expert's rules say where a path begins.
        return tuple(
            (re.sub(r"^\^", r"^expert_\\d+/", pattern), spec) for pattern, spec in self.expert.sharding_rules()
        )

    def shared_sizes(self) -> dict[str, int]:
        return self.expert.shared_sizes()

    def fitted(self, sizes: Mapping[str, int]) -> "TimestepExperts":
        return replace(self, expert=self.expert.fitted(sizes))

    def of_weights(self, trained: Network) -> Network:
        if not isinstance(trained, TimestepExperts):
            return self.expert.of_weights(trained)
        expert = self.expert.of_weights(trained.expert)
        assert isinstance(expert, Denoiser)
        return replace(trained, expert=expert)

    def describe(self) -> str:
        return f"{self.expert.describe()}, {len(self.names)} experts"
