"""The way from one image to another (2204.06125, section 3.2).

(1) z_i(theta) = slerp(z_i1, z_i2, theta)
(2) x_T(theta) = slerp(x_T1, x_T2, theta), or one x_T for all of the way

With x_T of both images (`invert`) the ends are the images themselves; with one x_T only what CLIP sees changes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.editing.points import slerp


def stops(num_points: int, frames: int) -> Float[Array, " n"]:
    """Places along `num_points` points, from 0 to num_points - 1, `frames` from one point to the next.

    Every point is met, the last one too: (num_points - 1) * frames + 1 places.
    """
    if num_points < 2 or frames < 1:
        raise ValueError(f"a way needs two points and a frame; got {num_points} and {frames}")
    return jnp.arange((num_points - 1) * frames + 1) / frames


def along(points: Float[Array, " p *dims"], places: Float[Array, " n"]) -> Float[Array, " n *dims"]:
    """Equation (1), or (2), at each of `places`: 0 is the first point, 1 the second, 1.5 half-way to the third."""
    first = jnp.clip(jnp.floor(places).astype(jnp.int32), 0, len(points) - 2)
    return slerp(points[first], points[first + 1], places - first)
