"""Trees of parameters: flat names, counts, and identities of weights."""

import hashlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from unclip_jax.core.typing import Params


def flatten(params: Params) -> dict[str, Any]:
    """Flatten nested parameters to a/b/kernel: array."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(tensors: dict[str, Any]) -> Params:
    """Invert `flatten`."""
    return traverse_util.unflatten_dict(tensors, sep="/")


def parameter_count(params: Params) -> int:
    """Return the number of scalars in a tree of arrays or of shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def identity(params: Params) -> str:
    """Return the identity of an encoder's embedding space: sha256 over names, shapes and float32 values.

    Take it from the weights as they were trained; a bundle keeps it when it stores them in fewer bits.
    """
    digest = hashlib.sha256()
    for name, value in sorted(flatten(params).items()):
        array = np.asarray(value, np.float32, order="C")
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
