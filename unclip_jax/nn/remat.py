"""Rematerialisation: what a block keeps for the backward pass, and what that computes again.

    False         everything is kept                                            most memory, no work twice
    "products"    what matrix products and convolutions put out is kept         norms, activations, attention again
    True          the input of each block alone is kept                         least memory, the whole block again

The numbers are the same. "products" keeps what is dear to compute and small: a product with a kernel costs as many
multiplications per number as the kernel has rows. The products inside attention, which has one matrix per example and
head, are not kept: its weights are the one thing that grows with the square of the sequence.
"""

from typing import Literal, TypeVar

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

Remat = bool | Literal["products"]

CONV = "conv"
"""The name of a convolution's output, which is no single primitive, as a matrix product is, for a policy to name."""

M = TypeVar("M", bound=type[nn.Module])


def named_conv(y: Array) -> Array:
    """Return `y` itself, the output of a convolution, which "products" keeps."""
    return checkpoint_name(y, CONV)


def rematerialised(module_class: M, remat: Remat, prevent_cse: bool = True) -> M:
    """Return `module_class`, or the same module that keeps less. `prevent_cse` may be False where the module is
    scanned."""
    if remat is False:
        return module_class
    if remat is True:
        return nn.remat(module_class, prevent_cse=prevent_cse)
    policies = jax.checkpoint_policies
    products = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(CONV)
    )
    return nn.remat(module_class, prevent_cse=prevent_cse, policy=products)
