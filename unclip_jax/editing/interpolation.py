"""The way from one image to another (2204.06125, section 3.2).

(1) z_i(theta) = slerp(z_i1, z_i2, theta)
(2) x_T(theta) = slerp(x_T1, x_T2, theta), or one x_T for all of the way

With x_T of both images (`invert`) the ends are the images themselves; with one x_T only what CLIP sees changes.

Even steps of theta are no even steps of what is seen: between two objects nearly all of it changes around one place.
`even` finds the places between which pixels move alike.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

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


def even(places: Float[np.ndarray, " m"], images: UInt8[np.ndarray, "m h w 3"], frames: int) -> Float[Array, " n"]:
    """As many places as `stops` gives, between which the images change by equal amounts, from one point to the next.

    Args:
        places: where `images` were drawn, more closely than frames are to be: `stops` of the same points.

    An amount is the root of the mean square of all pixels' differences; how far it is on the way between two of
    `images` is not known, and taken to be in proportion.
    """
    x = images.astype(np.float64)
    steps = np.sqrt(np.mean(np.square(np.diff(x, axis=0)), axis=(1, 2, 3)))
    found = [places[:1]]
    for point in range(round(float(places[-1]))):
        inside = np.flatnonzero((places >= point) & (places <= point + 1))
        travelled = np.append(0.0, np.cumsum(steps[inside[:-1]]))
        if travelled[-1] == 0:
            travelled = np.arange(len(inside), dtype=np.float64)
        wanted = np.linspace(0, travelled[-1], frames + 1)[1:]
        found.append(np.interp(wanted, travelled, places[inside]))
    return jnp.asarray(np.concatenate(found), jnp.float32)
