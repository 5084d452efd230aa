"""The path from one image to another (2204.06125, section 3.2).

(1) z_i(theta) = slerp(z_i1, z_i2, theta)
(2) x_T(theta) = slerp(x_T1, x_T2, theta), or one x_T for the whole path

With x_T of both images (`invert`) the ends are the images themselves; with one x_T only z_i changes.

Even steps of theta are no even steps of the picture: between two objects nearly all of it changes around one place.
`equal_change_positions` finds the positions between which pixels change alike.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unclip_jax.editing.embeddings import slerp

OVERSAMPLING = 4
"""Small images sampled for each frame, to find positions of equal change."""


def frame_positions(num_points: int, frames: int) -> Float[Array, " n"]:
    """Return positions along `num_points` points, from 0 to num_points - 1, `frames` from one point to the next.

    Every point is met, the last one too: (num_points - 1) * frames + 1 positions.
    """
    if num_points < 2 or frames < 1:
        raise ValueError(f"a path needs two points and a frame; got {num_points} and {frames}")
    return jnp.arange((num_points - 1) * frames + 1) / frames


def interpolate(points: Float[Array, " p *dims"], positions: Float[Array, " n"]) -> Float[Array, " n *dims"]:
    """Compute equation (1), or (2), at each of `positions`: 0 is the first point, 1 the second, 1.5 half-way to the
    third."""
    first = jnp.clip(jnp.floor(positions).astype(jnp.int32), 0, len(points) - 2)
    return slerp(points[first], points[first + 1], positions - first)


def equal_change_positions(
    positions: Float[np.ndarray, " m"], images: UInt8[np.ndarray, "m h w 3"], frames: int
) -> Float[Array, " n"]:
    """Return as many positions as `frame_positions` gives, from one point to the next of equal changes of the images.

    Args:
        positions: of `images`, more closely than frames are to be: `frame_positions` of the same points.

    An amount is the root of the mean square of all pixels' differences; how far it is on the way between two of
    `images` is not known, and taken to be in proportion.
    """
    x = images.astype(np.float64)
    steps = np.sqrt(np.mean(np.square(np.diff(x, axis=0)), axis=(1, 2, 3)))
    found = [positions[:1]]
    for point in range(round(float(positions[-1]))):
        inside = np.flatnonzero((positions >= point) & (positions <= point + 1))
        travelled = np.append(0.0, np.cumsum(steps[inside[:-1]]))
        if travelled[-1] == 0:
            travelled = np.arange(len(inside), dtype=np.float64)
        wanted = np.linspace(0, travelled[-1], frames + 1)[1:]
        found.append(np.interp(wanted, travelled, positions[inside]))
    return jnp.asarray(np.concatenate(found), jnp.float32)
