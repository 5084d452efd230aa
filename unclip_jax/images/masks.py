"""Random masks for training an inpainting network (2112.10741, section 3.3).

Each mask is one of four kinds, all equally likely but the last, which comes as often as the caller says:

    boxes     one to three of them, anywhere
    frame     all but one box, as when a picture is continued beyond its edges
    stroke    a thick line through five points, as by hand
    whole     everything
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

MAX_BOXES = 3
BOX = (0.15, 0.75)
"""Smallest and largest side of a box, as a part of the image's."""
POINTS = 5
STROKE = (0.04, 0.15)
"""Smallest and largest half width of a stroke."""


def random_masks(keys: Key[Array, " b"], size: int, whole: float) -> Bool[Array, "b {size} {size}"]:
    """Sample one mask per key, True where to generate, for images of `size` px; never empty. `whole` is the share that
    covers everything."""
    return jax.vmap(lambda key: _mask(key, size, whole))(keys)


def _mask(key: Key[Array, ""], size: int, whole: float) -> Bool[Array, "{size} {size}"]:
    kind_key, whole_key, count_key, box_key, stroke_key = jax.random.split(key, 5)
    boxes = jax.vmap(lambda key: _box(key, size))(jax.random.split(box_key, MAX_BOXES))
    counted = jnp.arange(MAX_BOXES) < jax.random.randint(count_key, (), 1, MAX_BOXES + 1)
    kinds = jnp.stack([jnp.any(boxes & counted[:, None, None], axis=0), ~boxes[0], _stroke(stroke_key, size)])
    return kinds[jax.random.randint(kind_key, (), 0, len(kinds))] | jax.random.bernoulli(whole_key, whole)


def _pixels(size: int) -> tuple[Float[Array, "{size} 1"], Float[Array, "1 {size}"]]:
    """Return y and x of the pixels' middles, in units of the image's side."""
    centres = (jnp.arange(size) + 0.5) / size
    return centres[:, None], centres[None]


def _box(key: Key[Array, ""], size: int) -> Bool[Array, "{size} {size}"]:
    side_key, place_key = jax.random.split(key)
    height, width = jax.random.uniform(side_key, (2,), minval=BOX[0], maxval=BOX[1])
    v, u = jax.random.uniform(place_key, (2,))
    y, x = _pixels(size)
    top, left = v * (1 - height), u * (1 - width)
    # A box of a narrow image still holds a pixel.
    half = 0.5 / size
    return (abs(y - top - height / 2) <= jnp.maximum(height / 2, half)) & (
        abs(x - left - width / 2) <= jnp.maximum(width / 2, half)
    )


def _stroke(key: Key[Array, ""], size: int) -> Bool[Array, "{size} {size}"]:
    """Mask all that is near a line: the distance from a point p to the segment a b is |p - a - s (b - a)| at s =
    clip(<p - a, b - a> / |b - a|^2, 0, 1)."""
    points_key, width_key = jax.random.split(key)
    points = jax.random.uniform(points_key, (POINTS, 2))
    radius = jax.random.uniform(width_key, (), minval=STROKE[0], maxval=STROKE[1])
    start, way = points[:-1, None, None], jnp.diff(points, axis=0)[:, None, None]
    y, x = _pixels(size)
    place = jnp.stack(jnp.broadcast_arrays(y, x), axis=-1)
    s = jnp.clip(jnp.sum((place - start) * way, -1) / jnp.maximum(jnp.sum(way * way, -1), 1e-6), 0, 1)
    distance = jnp.linalg.norm(place - start - s[..., None] * way, axis=-1)
    return jnp.any(distance <= jnp.maximum(radius, 0.71 / size), axis=0)
