"""The interface of networks: frozen specs, JSON in and out, whose methods make, run and lay out parameters.

A spec holds numbers only. `NETWORKS`, filled in `unclip_jax.models`, says which class a name in a JSON file means; who
brings a network of their own adds it there. A `Denoiser` is what diffusion runs:

(1) output = network.apply(params, x_t, time, cond)          cond = network.Cond(**fields), fields in `cond_fields`
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Key, PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import DataclassInstance, Params
from unclip_jax.parallel.rules import REPLICATE, Rules

T = TypeVar("T")
MAX_SIZE, MAX_LAYERS, MAX_LEVELS = 2**20, 128, 16
"""Bounds of a spec: of a width, a side or a count of anything; of layers, or blocks of a level; of levels."""
Dtype = Literal["float32", "bfloat16", "float16"]
Null = Literal["learned", "empty_caption"]
"""Stands in for a dropped caption: learned embeddings (GLIDE, the paper), or the encoding of "" (Karlo, Kandinsky)."""


class Network:
    """A network as a frozen dataclass; the methods below hold for every one of them."""

    TAG: ClassVar[tuple[str, str]]
    """("network", its name in JSON)."""
    FREE: ClassVar[tuple[str, ...]] = ("remat", "attention", "dropout")
    """Fields that weights do not decide: they say how it is computed or trained, not which function it is."""
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @staticmethod
    def variants() -> dict[str, type]:
        """Return the table that `unclip_jax.core.config` reads specs with."""
        return NETWORKS

    def init(self, key: Key[Array, ""]) -> Params:
        """Return random parameters, float32."""
        raise NotImplementedError

    def abstract_params(self) -> Params:
        """Return the tree of `init` as shapes only, computed without allocating; a tree of the caller's own."""
        return jax.tree.map(lambda leaf: leaf, _traced(self))

    def sharding_rules(self) -> Rules:
        """Return where the parameters live on a mesh; whole on every device unless the network says otherwise."""
        return REPLICATE

    def shared_sizes(self) -> dict[str, int]:
        """Return numbers that must be equal in networks that work together, by names that they have in common."""
        return {}

    def of_weights(self, trained: "Network") -> "Network":
        """Return the network that the weights of `trained` belong to, with this one's fields where weights leave them
        `FREE`."""
        both = {field.name for field in dataclasses.fields(self)} & {
            field.name for field in dataclasses.fields(trained)
        }
        own = {name: getattr(self, name) for name in self.FREE if name in both}
        return dataclasses.replace(trained, **own)

    def describe(self) -> str:
        """Return a few words for a person."""
        return self.TAG[1]


class Denoiser(Network):
    """A network that makes the prediction of a diffusion process from a noised sample and conditions."""

    Cond: ClassVar[type]
    """Its conditioning inputs, a pytree with `null()`, the unconditional twin."""

    @property
    def cond_fields(self) -> frozenset[str]:
        """The fields of `Cond` that this network reads."""
        return frozenset()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, [d] or [h w c]."""
        raise NotImplementedError

    @property
    def learns_variance(self) -> bool:
        """Whether the output has a second half of channels, for the variance."""
        return False

    @property
    def multiple(self) -> int:
        """The side of what it takes, in pixels, must be a multiple of this."""
        return 1

    def apply(
        self,
        params: Params,
        x_t: Float[Array, " b *dims"],
        time: Float[Array, " b"],
        cond: PyTree,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, " b *channels"]:
        """Compute equation (1); without keys there is no dropout."""
        raise NotImplementedError

    def without_dropout(self) -> "Denoiser":
        """Return the same network as it is sampled, for what else passes keys."""
        return dataclasses.replace(self, dropout=0.0) if hasattr(self, "dropout") else self

    def fitted(self, sizes: Mapping[str, int]) -> "Denoiser":
        """Return the same network with the sizes that it shares with its encoders taken from them (`shared_sizes`)."""
        del sizes
        return self

    def start_from(self, params: Params) -> Params:
        """Convert parameters of a related network to fit this one, where the network supports it; leave others as they
        are."""
        return params

    def describe(self) -> str:
        return " x ".join(map(str, self.sample_shape))


NETWORKS: dict[str, type[Network]] = {}
"""Network classes by their name in JSON; see `unclip_jax.models`."""


@functools.lru_cache(maxsize=64)
def _traced(network: Network) -> Params:
    """Trace `init` once for each spec: for a large network it takes longer than reading its weights."""
    return jax.eval_shape(network.init, jax.random.key(0))


def require(value: T | None, name: str) -> T:
    """Return a condition that the spec needs; ValueError where the caller left it out."""
    if value is None:
        raise ValueError(f"this network needs cond.{name}, which is None")
    return value


def check_sizes(name: str, spec: DataclassInstance) -> None:
    """Refuse sizes that no network has, which a file may ask for: every whole number but an id is a size.

    Raises UserError naming the field and the bound.
    """
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        several = value if isinstance(value, tuple) else (value,)
        if len(several) > MAX_LEVELS:
            raise UserError(f"{name}: {field.name} holds {len(several)} numbers; give at most {MAX_LEVELS}")
        least = 0 if field.name in ("eos_id", "attention_resolutions") else 1
        most = MAX_LAYERS if field.name in ("num_layers", "num_blocks") else MAX_SIZE
        for each in several:
            if type(each) is int and not least <= each <= most:
                raise UserError(f"{name}: {field.name} is {each}; choose {least} to {most}")


def check_heads(name: str, width: int, heads: int) -> None:
    """Refuse a width that the heads do not divide."""
    if width % heads:
        raise UserError(f"{name}: width {width} is not divisible by {heads} heads; choose a multiple")


def init_module(module: nn.Module, key: Key[Array, ""], *arguments: PyTree, method: str | None = None) -> Params:
    """Initialise a module whose only collection is its parameters."""
    return dict(module.init(key, *arguments, method=method)["params"])


def apply_module(module: nn.Module, params: Params, *arguments: PyTree, method: str | None = None) -> PyTree:
    """Call `module.apply` for modules whose only collection is their parameters."""
    return module.apply({"params": params}, *arguments, method=method)
