"""What every spec and network shares."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Key

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params

T = TypeVar("T")
Dtype = Literal["float32", "bfloat16", "float16"]
Null = Literal["learned", "empty_caption"]
"""What stands for no caption: learned embeddings (GLIDE, the paper), or the encoding of "" (Karlo, Kandinsky)."""


def abstract(init_params: Callable[..., Params], spec: Any) -> Params:
    """Shapes and dtypes of `init_params(spec, key)`, computed without allocating them; a tree of the caller's own."""
    return jax.tree.map(lambda leaf: leaf, _traced(init_params, spec))


@functools.lru_cache(maxsize=64)
def _traced(init_params: Callable[..., Params], spec: Any) -> Params:
    """Once for each spec: tracing a large network takes longer than reading its weights."""
    return jax.eval_shape(lambda key: init_params(spec, key), jax.random.key(0))


def parameter_count(params: Params) -> int:
    """Number of scalars in a tree of arrays or of shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def given(value: T | None, name: str) -> T:
    """A condition that the spec asks for; ValueError where the caller left it out."""
    if value is None:
        raise ValueError(f"this network needs cond.{name}, which is None")
    return value


def check_heads(name: str, width: int, heads: int) -> None:
    """Refuse a width that the heads do not divide."""
    if width % heads:
        raise UserError(f"{name}: width {width} is not divisible by {heads} heads; choose a multiple")


def init_module(module: nn.Module, key: Key[Array, ""], *arguments: Any, method: str | None = None) -> Params:
    """Random parameters of a module whose only collection they are."""
    return cast(Params, module.init(key, *arguments, method=method)["params"])


def apply_module(module: nn.Module, params: Params, *arguments: Any, method: str | None = None) -> Any:
    """`module.apply` for modules whose only collection is their parameters."""
    return module.apply({"params": params}, *arguments, method=method)
