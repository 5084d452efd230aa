"""Reads the objects of a captioned-shapes image off its pixels, and judges if they are what a caption says.

No network is involved, so a score means the same in every paper and on every machine:

1. the image is brought to 128 px and blurred by about a stripe's width, which leaves each object's mean tone;
2. the background is the median of the border; the foreground is where the distance from it exceeds half of
   its local maximum, which is where the outline of a blurred object lies;
3. each foreground pixel takes the colour of nearest hue, which shades and tints keep; a connected core of one
   colour is an object, and outline pixels go to the nearest core;
4. an object's shape is the one of largest intersection over union, placed by area and centroid.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy import ndimage

from unclip_jax.data.captioned_shapes.render import signed_distance
from unclip_jax.data.captioned_shapes.scenes import COLOURS, SHAPES, Query

_SIDE = 128
_BLUR = 1.4
_BORDER = 3
_MIN_CONTRAST, _MIN_CHROMA = 30.0, 24.0
_CONTRAST_WINDOW = 13
_EDGE = 2
# The smallest object that is rendered has about 670 pixels at 128 px; specks have fewer than these.
_MIN_CORE, _MIN_AREA = 90, 220
_MIN_OVERLAP = 0.75


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """An object in an image. (x, y): its centroid, in units of the image's side; area: its part of the image.

    colour: None where the object has no hue. shape: None where `overlap`, the intersection over union with
    the most similar shape, is below 0.75: rendered objects reach 0.87 at least.
    """

    colour: str | None
    shape: str | None
    x: float
    y: float
    area: float
    overlap: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an image shows what a caption demands.

    count: there are as many objects as demanded; where not, everything else is False. colour, shape: the
    objects have the demanded colours, or shapes, in some order. relation: it holds for the objects that fit
    the demanded ones best; None if none is demanded. all: each object has the right colour together with the
    right shape, and the relation holds. Size, texture and background are not judged.
    """

    count: bool
    colour: bool
    shape: bool
    relation: bool | None
    all: bool


def read(image: UInt8[np.ndarray, "h w 3"]) -> list[Found]:
    """Find the objects of an image, the largest first. An image without any gives an empty list."""
    resized = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, np.float32)
    pixels = ndimage.gaussian_filter(pixels, (_BLUR, _BLUR, 0))
    foreground = _foreground(pixels)
    found = [_describe(colour, mask) for colour, mask in _segment(pixels, foreground)]
    kept = [entry for entry in found if entry.area * _SIDE**2 >= _MIN_AREA]
    return sorted(kept, key=lambda entry: -entry.area)


def check(image: UInt8[np.ndarray, "h w 3"], query: Query) -> Verdict:
    """Judge an image by what a caption demands; `unclip_jax.data.captioned_shapes.scenes.parse` reads a caption."""
    return judge(read(image), query)


def judge(found: list[Found], query: Query) -> Verdict:
    """Judge objects that have been read, as `check`."""
    wanted = query.objects
    relation = None if query.relation is None else False
    if len(found) != len(wanted):
        return Verdict(count=False, colour=False, shape=False, relation=relation, all=False)
    orders = list(itertools.permutations(found))
    pairings = [list(zip(order, wanted, strict=True)) for order in orders]
    colours = [[want.colour in (None, entry.colour) for entry, want in pairs] for pairs in pairings]
    shapes = [[entry.shape == want.shape for entry, want in pairs] for pairs in pairings]
    hits = [sum(colour) + sum(shape) for colour, shape in zip(colours, shapes, strict=True)]
    if query.relation is not None:
        # Where both orders fit equally well, none can be said to stand in the relation: one of them does not.
        relation = all(
            _holds(query.relation, *order) for order, hit in zip(orders, hits, strict=True) if hit == max(hits)
        )
    return Verdict(
        count=True,
        colour=any(all(colour) for colour in colours),
        shape=any(all(shape) for shape in shapes),
        relation=relation,
        all=max(hits) == 2 * len(wanted) and relation is not False,
    )


def _foreground(pixels: Float[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    inner = np.zeros(pixels.shape[:2], bool)
    inner[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    background = np.median(pixels[~inner], axis=0)
    contrast = np.linalg.norm(pixels - background, axis=-1)
    local = ndimage.maximum_filter(contrast, _CONTRAST_WINDOW)
    return contrast > np.maximum(_MIN_CONTRAST, 0.5 * local)


def _segment(
    pixels: Float[np.ndarray, "h w 3"], foreground: Bool[np.ndarray, "h w"]
) -> list[tuple[str | None, Bool[np.ndarray, "h w"]]]:
    """Return the colour and the mask of each object in the foreground."""
    # Outlines are mixtures with the background, whose hue says nothing.
    core = ndimage.binary_erosion(foreground, iterations=_EDGE)
    nearest = _nearest_colours(pixels)
    seeds = np.zeros(foreground.shape, np.int32)
    colours = []
    for index, colour in [(-1, None), *enumerate(COLOURS)]:
        labels, parts = _components(core & (nearest == index))
        areas = np.bincount(labels.ravel(), minlength=parts + 1)
        for part in range(1, parts + 1):
            if areas[part] >= _MIN_CORE:
                colours.append(colour)
                seeds[labels == part] = len(colours)
    if not colours:
        return []
    closest = np.zeros((2, *seeds.shape), np.int32)
    ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True, indices=closest)
    objects = np.where(foreground, seeds[closest[0], closest[1]], 0)
    # A speck belongs to no object, however near: only what is connected to an object's core is part of it.
    pieces, _ = _components(foreground)
    return [
        (colour, (objects == label) & (pieces == pieces[seeds == label][0]))
        for label, colour in enumerate(colours, start=1)
    ]


def _components(mask: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], int]:
    """Number the connected parts of a mask from 1, and count them."""
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    return labels, int(labels.max())


def _nearest_colours(pixels: Float[np.ndarray, "*grid 3"]) -> Int[np.ndarray, "*grid"]:
    """Return the index in COLOURS of the nearest hue, -1 where there is hardly any hue."""
    hue, chroma = _hue_and_chroma(pixels)
    references, _ = _hue_and_chroma(np.asarray(list(COLOURS.values()), np.float32))
    difference = np.abs((hue[..., None] - references + math.pi) % (2 * math.pi) - math.pi)
    return np.where(chroma < _MIN_CHROMA, -1, difference.argmin(axis=-1))


def _hue_and_chroma(
    pixels: Float[np.ndarray, "*grid 3"],
) -> tuple[Float[np.ndarray, "*grid"], Float[np.ndarray, "*grid"]]:
    """Return angle and length of a colour's part perpendicular to grey; shades and tints have the colour's angle."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    across, up = red - (green + blue) / 2, math.sqrt(3) / 2 * (green - blue)
    return np.arctan2(up, across), np.hypot(up, across)


def _describe(colour: str | None, mask: Bool[np.ndarray, "h w"]) -> Found:
    rows, columns = np.nonzero(mask)
    y, x = rows.mean() + 0.5, columns.mean() + 0.5
    overlaps = {shape: _overlap(shape, mask, x, y) for shape in SHAPES}
    shape = max(SHAPES, key=lambda shape: overlaps[shape])
    return Found(
        colour=colour,
        shape=shape if overlaps[shape] >= _MIN_OVERLAP else None,
        x=float(x) / _SIDE,
        y=float(y) / _SIDE,
        area=rows.size / _SIDE**2,
        overlap=overlaps[shape],
    )


def _overlap(shape: str, mask: Bool[np.ndarray, "h w"], x: float, y: float) -> float:
    """Return the intersection over union of a mask with the shape of its area and its centroid (x, y), in pixels."""
    area, drop = _unit_moments(shape)
    radius = math.sqrt(np.count_nonzero(mask) / area)
    ys, xs = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    template = signed_distance(shape, xs - x, ys - y + drop * radius, radius) < 0
    return float(np.count_nonzero(mask & template) / np.count_nonzero(mask | template))


@functools.cache
def _unit_moments(shape: str) -> tuple[float, float]:
    """Return a shape's area at radius 1, and how far its centroid lies below its centre."""
    axis = (np.arange(512) + 0.5) / 256 - 1
    xs, ys = np.meshgrid(axis, axis)
    inside = signed_distance(shape, xs, ys, 1.0) < 0
    return float(inside.mean() * 4), float(ys[inside].mean())


def _holds(relation: str, first: Found, second: Found) -> bool:
    """Return whether the first object stands in the relation to the second, and more so than across its axis."""
    right, down = first.x - second.x, first.y - second.y
    offset, across = (right, down) if relation in ("left of", "right of") else (down, right)
    towards = offset if relation in ("right of", "below") else -offset
    return towards > abs(across)
