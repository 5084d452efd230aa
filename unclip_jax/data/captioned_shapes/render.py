"""Draws a scene as an image, anti-aliased at any resolution.

A shape is a signed distance d(p), negative inside; its coverage of a pixel of side s is a smooth step of d
over about that side (1). Textures are periodic tones of the object's colour c, anchored at its centre:
striped mixes in a darker shade, dotted a lighter tint (2). They are rendered on a finer grid and averaged: at
32 px their period, 5/128 of the image, is little over a pixel, and not much but the mean tone must remain.

    coverage = smoothstep(1/2 - d / (1.25 s))                                    (1)
    colour   = c + m (e - c),   m in [0, 1] the texture's mask, e the shade or tint    (2)
"""

import math

import numpy as np
from jaxtyping import Float, UInt8

from unclip_jax.data.captioned_shapes.scenes import BACKGROUNDS, COLOURS, Object, Scene

_PERIOD = 5 / 128
_TEXTURE_GRID = 256
_SHADE, _TINT = 0.58, 0.72


def render(scene: Scene, resolution: int) -> UInt8[np.ndarray, "{resolution} {resolution} 3"]:
    """Render the scene as an sRGB image of resolution x resolution pixels."""
    image = np.empty((resolution, resolution, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    for entry in scene.objects:
        _draw(image, entry)
    return (image + 0.5).astype(np.uint8)


def signed_distance(
    shape: str, x: Float[np.ndarray, "*grid"], y: Float[np.ndarray, "*grid"], radius: float
) -> Float[np.ndarray, "*grid"]:
    """Return the signed distance to a shape of this radius centred at the origin (y downwards), negative inside.

    Exact at the outline apart from its corners; every shape lies in the box |x|, |y| <= radius.
    """
    match shape:
        case "circle":
            return np.hypot(x, y) - radius
        case "ring":
            return np.abs(np.hypot(x, y) - 0.76 * radius) - 0.24 * radius
        case "square":
            return np.maximum(np.abs(x), np.abs(y)) - 0.86 * radius
        case "triangle":
            # Equilateral of width 2 radius, its box centred at the origin: the sides have the normals below.
            half_height = 0.5 * math.sqrt(3) * radius
            slope = math.cos(math.pi / 6) * np.abs(x) - 0.5 * (y + half_height)
            return np.maximum(y - half_height, slope)
        case "cross":
            x, y = np.abs(x), np.abs(y)
            long, short = 0.96 * radius, 0.33 * radius
            return np.maximum(np.maximum(x, y) - long, np.minimum(x, y) - short)
        case "star":
            # Five-fold symmetry folds the plane to half a point of the star, whose outline is one line.
            y = y - 0.09 * radius
            sector = 2 * math.pi / 5
            angle = np.arctan2(x, -y)
            angle = np.abs(angle - sector * np.round(angle / sector))
            distance = np.hypot(x, y)
            tip = (radius, 0.0)
            notch = (0.47 * radius * math.cos(sector / 2), 0.47 * radius * math.sin(sector / 2))
            normal = (notch[1] - tip[1], tip[0] - notch[0])
            length = math.hypot(*normal)
            along = distance * np.cos(angle) - tip[0]
            return (along * normal[0] + distance * np.sin(angle) * normal[1]) / length
    raise ValueError(f"unknown shape {shape!r}")


def _draw(image: Float[np.ndarray, "n n 3"], entry: Object) -> None:
    """Blend one object into the image, touching only the box around it."""
    resolution = image.shape[0]
    # One pixel more than the radius holds the soft edge.
    rows = _span(entry.y, entry.radius, resolution)
    columns = _span(entry.x, entry.radius, resolution)
    y = ((np.arange(rows.start, rows.stop) + 0.5) / resolution - entry.y).astype(np.float32)
    x = ((np.arange(columns.start, columns.stop) + 0.5) / resolution - entry.x).astype(np.float32)
    grid_x, grid_y = np.meshgrid(x, y)
    distance = signed_distance(entry.shape, grid_x, grid_y, entry.radius)
    step = np.clip(0.5 - distance * (resolution / 1.25), 0, 1)
    # Equation (1).
    coverage = (step * step * (3 - 2 * step))[..., None]
    patch = image[rows, columns]
    patch += coverage * (_colour(entry, x, y, resolution) - patch)


def _span(centre: float, radius: float, resolution: int) -> slice:
    first = math.floor((centre - radius) * resolution) - 1
    last = math.ceil((centre + radius) * resolution) + 1
    return slice(max(first, 0), min(last, resolution))


def _colour(
    entry: Object, x: Float[np.ndarray, " w"], y: Float[np.ndarray, " h"], resolution: int
) -> Float[np.ndarray, "h w 3"] | Float[np.ndarray, " 3"]:
    """Return the object's colour at every pixel, or its one colour if it is plain; eq. (2)."""
    colour = np.asarray(COLOURS[entry.colour], np.float32)
    if entry.texture == "plain":
        return colour
    fine = max(2, -(-_TEXTURE_GRID // resolution))
    offsets = ((np.arange(fine, dtype=np.float32) + 0.5) / fine - 0.5) / resolution
    fine_x = (x[:, None] + offsets).reshape(1, -1) / _PERIOD
    fine_y = (y[:, None] + offsets).reshape(-1, 1) / _PERIOD
    if entry.texture == "striped":
        end = colour * _SHADE
        mask = np.cos(2 * math.pi * (fine_x + fine_y) / math.sqrt(2)) > 0
    else:
        end = colour + (255 - colour) * _TINT
        # Dots on a lattice turned by 45 degrees, a period apart.
        u, v = (fine_x + fine_y) / math.sqrt(2), (fine_x - fine_y) / math.sqrt(2)
        mask = (u - np.round(u)) ** 2 + (v - np.round(v)) ** 2 < 0.33**2
    mean = mask.reshape(y.size, fine, x.size, fine).mean(axis=(1, 3), dtype=np.float32)
    return colour + mean[..., None] * (end - colour)
