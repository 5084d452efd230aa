"""Trees of parameters: flat names, counts, and identities of weights."""

import hashlib
from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import HasShape, Params


def flatten(params: Params) -> dict[str, HasShape]:
    """Flatten nested parameters to a/b/kernel: array."""
    flat: dict[str, HasShape] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": leaf for key, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def unflatten(tensors: Mapping[str, HasShape]) -> Params:
    """Invert `flatten`."""
    return traverse_util.unflatten_dict(tensors, sep="/")


def parameter_count(params: Params) -> int:
    """Return the number of scalars in a tree of arrays or of shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def check_finite(where: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse numbers that are not finite; `where` is the file or the checkpoint.

    Raises UserError, naming the first tensor that holds one.
    """
    for name, value in tensors.items():
        if not _is_finite(value):
            raise UserError(f"{where}: tensor {name} is not finite; take other weights, those of an earlier checkpoint")


def _is_finite(value: np.ndarray) -> bool:
    if value.dtype in (np.float32, np.float64):
        flat = value.reshape(-1)
        with np.errstate(all="ignore"):
            # One pass at the speed of memory. Squares cancel nothing, and only huge ones overflow by themselves.
            if np.isfinite(np.dot(flat, flat)):
                return True
    return bool(np.isfinite(value).all())


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
