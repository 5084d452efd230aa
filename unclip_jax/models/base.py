"""What every spec and network shares."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.typing import Params

Dtype = Literal["float32", "bfloat16", "float16"]


def abstract(init_params: Callable[..., Params], spec: Any) -> Params:
    """Shapes and dtypes of `init_params(spec, key)`, computed without allocating them."""
    return jax.eval_shape(lambda key: init_params(spec, key), jax.random.key(0))


def parameter_count(params: Params) -> int:
    """Number of scalars in a tree of arrays or of shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def check_heads(name: str, width: int, heads: int) -> None:
    """Refuse a width that the heads do not divide."""
    if width % heads:
        raise UserError(f"{name}: width {width} is not divisible by {heads} heads; choose a multiple")
