"""Array types, and the legend of the dimension names used in every annotation.

    b  batch          h, w, c  image height, width, channels      n  tokens
    d  width          k        attention heads                    m  second token axis (keys and values)
    s  sampling steps

A name that stands alone is written with a leading space, `Float[Array, " b"]`. The annotations cost nothing
in production; the tests check them with beartype.
"""

from typing import Any

from jax import Array
from jaxtyping import Bool, Float, Int, Key, UInt8

Params = dict[str, Any]
"""A network's parameters: nested dicts of float arrays, as `init` makes them."""

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Params", "UInt8"]
