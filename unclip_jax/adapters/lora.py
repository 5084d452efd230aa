"""Low-rank adapters (LoRA; Hu et al., 2021, arXiv 2106.09685) of dense and of convolution kernels.

(1) W' = W + scale A B                                A [in r], B [r out]      for a dense kernel W [in out]
(2) W'[y x i o] = W[y x i o] + scale sum_r A[y x i r] B[0 0 r o]               for a convolution's
(3) scale = alpha / r,   or alpha / sqrt(r)           rsLoRA (Kalajdzievski, 2023, arXiv 2312.03732)

Both are one product of matrices: A has the leading axes of its kernel, B ones in their place (no axis where layers are
stacked: there B has the depth as well). It is PEFT's convention: of a convolution's two, the first has the kernel's
size and the second is 1x1.

The parameters of an adapter are a tree like the network's: beside a/b/kernel lie a/b/lora_A/kernel and
a/b/lora_B/kernel. B begins as zeros, so that a fresh adapter changes nothing, to the bit.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import HasShape, Params
from unclip_jax.models.parameters import flatten, unflatten
from unclip_jax.parallel.rules import Rules

MAX_RANK = 4096
KERNEL, DOWN, UP = "/kernel", "/lora_A/kernel", "/lora_B/kernel"
"""Ends of the paths of W, A and B."""
Scales = Mapping[str, float]
"""The scale of equation (3) by the path of the kernel's layer, a/b."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """An adapter to train in place of the weights themselves."""

    rank: int = 0
    """Rank of the adapter, r; 0 trains the weights themselves."""
    alpha: float = 0.0
    """The update is scaled by alpha / rank; 0 stands for the rank itself, a scale of 1."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), so that large ranks learn as fast as small ones."""
    targets: tuple[str, ...] = ("",)
    """Regular expressions on paths of layers, such as down_1_0/conv_in or attention/; each kernel in whose path one of
    them is found is adapted. By default all are."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank <= MAX_RANK:
            raise UserError(f"lora.rank is {self.rank}; it must be 0 (no adapter) to {MAX_RANK}")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise UserError(f"lora.alpha is {self.alpha}; it must be 0 (the rank) or more")
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"lora.targets has {pattern!r}, no regular expression ({error}); mend it") from error

    @property
    def scale(self) -> float:
        """Equation (3)."""
        alpha = self.alpha or float(self.rank)
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def layers(self, shapes: Params) -> dict[str, HasShape]:
        """Return the kernels that are adapted, of the network with these parameters, by the paths of their layers.

        Raises UserError for a target that means no kernel.
        """
        kernels = kernels_of(shapes)
        for pattern in self.targets:
            if not any(re.search(pattern, path) for path in kernels):
                raise UserError(f"lora.targets has {pattern!r}, which means no layer; {_some(kernels)}")
        return {
            path: kernel
            for path, kernel in kernels.items()
            if any(re.search(pattern, path) for pattern in self.targets)
        }


def kernels_of(params: Params) -> dict[str, HasShape]:
    """Return all kernels of a network by the paths of their layers."""
    flat = flatten(params)
    return {name.removesuffix(KERNEL): value for name, value in flat.items() if name.endswith(KERNEL)}


def layers_of(adapter: Params) -> list[str]:
    """Return the paths of the layers that an adapter changes."""
    return [name.removesuffix(DOWN) for name in flatten(adapter) if name.endswith(DOWN)]


def shapes_of(kernel: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of A and B for a kernel of this shape, by equations (1) and (2)."""
    *leading, width, out = kernel
    # A convolution has one B for all of its places; stacked layers have each their own.
    ahead = (1,) * len(leading) if len(leading) == 2 else tuple(leading)
    return (*leading, width, rank), (*ahead, rank, out)


def new_adapter(shapes: Params, lora: LoRAConfig, key: Key[Array, ""]) -> Params:
    """Return fresh parameters for a network: A uniform in +-1 / sqrt(fan_in), as PEFT has it, and B zero."""
    flat: dict[str, Array] = {}
    for number, (path, kernel) in enumerate(sorted(lora.layers(shapes).items())):
        down, up = shapes_of(kernel.shape, lora.rank)
        places = kernel.shape[:-1] if len(kernel.shape) == 4 else kernel.shape[-2:-1]
        bound = 1 / math.sqrt(math.prod(places))
        flat[path + DOWN] = jax.random.uniform(
            jax.random.fold_in(key, number), down, jnp.float32, minval=-bound, maxval=bound
        )
        flat[path + UP] = jnp.zeros(up, jnp.float32)
    return unflatten(flat)


def merge(params: Params, adapter: Params, scales: Scales) -> Params:
    """Compute equations (1) and (2): the network's parameters with an adapter in them, those of NumPy by NumPy.

    It is pure, so that it stands in losses and in sampling alike. What has no adapter is returned as it is.
    """
    flat: dict[str, Any] = dict(flatten(params))
    own: dict[str, Any] = dict(flatten(adapter))
    # On a TPU a product of float32 is one of bfloat16 unless told.
    with jax.default_matmul_precision("highest"):
        for path in layers_of(adapter):
            kernel = flat[path + KERNEL]
            update = scales[path] * (own[path + DOWN] @ own[path + UP])
            flat[path + KERNEL] = (kernel + update).astype(kernel.dtype)
    return unflatten(flat)


def adapter_rules(rules: Rules, shapes: Params, lora: LoRAConfig) -> Rules:
    """Return where an adapter lies on a mesh, by the rules of its network: inputs of A and outputs of B as those
    of the kernel, the rank whole."""
    found: list[tuple[str, P]] = []
    for path, kernel in lora.layers(shapes).items():
        spec = next((spec for pattern, spec in rules if re.search(pattern, path + KERNEL)), P())
        axes = [*[None] * (len(kernel.shape) - len(spec)), *spec]
        found += [
            (f"^{re.escape(path + DOWN)}$", P(axes[-2], None)),
            (f"^{re.escape(path + UP)}$", P(None, axes[-1])),
        ]
    return found


def _some(kernels: Mapping[str, object]) -> str:
    return f"there are {', '.join(list(kernels)[:4])} and others"
