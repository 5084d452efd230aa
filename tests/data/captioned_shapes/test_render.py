import dataclasses

import numpy as np
import pytest

from unclip_jax.data.captioned_shapes import render as draw
from unclip_jax.data.captioned_shapes import scenes as shapes
from unclip_jax.data.captioned_shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, Object, Scene


def _alone(shape: str, **changes) -> Scene:
    fields = {"colour": "red", "size": "large", "texture": "plain", "x": 0.5, "y": 0.5, "radius": 0.35}
    fields |= {"shape": shape} | changes
    return Scene(objects=(Object(**fields),), background="black", relation=None)


def _coverage(image: np.ndarray) -> float:
    """The part of a plain red object in an image on black, from the red channel."""
    low, high = BACKGROUNDS["black"][0], COLOURS["red"][0]
    return float(((image[..., 0].astype(float) - low) / (high - low)).mean())


# Areas at radius 1, from the corners of each outline.
_SIN, _COS = np.sin(np.pi / 5), np.cos(np.pi / 5)
AREAS = {
    "circle": np.pi,
    "ring": np.pi * (1 - 0.52**2),
    "square": (2 * 0.86) ** 2,
    "triangle": np.sqrt(3),
    "cross": 2 * (2 * 0.96) * (2 * 0.33) - (2 * 0.33) ** 2,
    "star": 10 * 0.5 * 0.47 * _SIN,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resolution", [32, 64, 128, 200])
def test_coverage_is_the_area_of_the_shape(shape, resolution):
    image = draw.render(_alone(shape, x=0.48, y=0.53), resolution)
    assert image.shape == (resolution, resolution, 3) and image.dtype == np.uint8
    expected = AREAS[shape] * 0.35**2
    assert abs(_coverage(image) - expected) < 0.035 * expected


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_box_and_stay_inside(shape):
    axis = np.linspace(-1.5, 1.5, 601)
    x, y = np.meshgrid(axis, axis)
    distance = draw.signed_distance(shape, 2.0 * x, 2.0 * y, 2.0)
    inside = distance < 0
    assert np.abs(x[inside]).max() <= 1.001 and np.abs(y[inside]).max() <= 1.001
    assert np.abs(x[inside]).max() > 0.85
    # A distance changes no faster than one goes.
    assert np.abs(np.diff(distance, axis=0)).max() <= 2.0 * (axis[1] - axis[0]) * 1.001
    np.testing.assert_allclose(distance, distance[:, ::-1], atol=1e-9)


def test_only_the_ring_is_open_at_its_centre():
    origin = np.zeros((1, 1))
    for shape in SHAPES:
        assert (draw.signed_distance(shape, origin, origin, 1.0)[0, 0] > 0) == (shape == "ring")


@pytest.mark.parametrize(("shape", "feet"), [("triangle", 1), ("star", 2)])
def test_triangle_and_star_point_upwards(shape, feet):
    image = draw.render(_alone(shape), 128)[..., 0] > 120
    rows = image[image.any(axis=1)].astype(int)
    runs = (np.diff(rows, axis=1) == 1).sum(axis=1)
    assert runs[0] == 1 and rows[0].sum() <= 5
    assert runs[-3] == feet and rows[-3].sum() > 5


def test_unknown_shape():
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        draw.signed_distance("blob", np.zeros((1, 1)), np.zeros((1, 1)), 1.0)


def test_outlines_are_soft_and_the_rest_exact():
    image = draw.render(_alone("circle"), 128)
    flat = {tuple(map(int, pixel)) for pixel in image.reshape(-1, 3)}
    assert {BACKGROUNDS["black"], COLOURS["red"]} <= flat
    between = (image[..., 0] > BACKGROUNDS["black"][0]) & (image[..., 0] < COLOURS["red"][0])
    circumference = 2 * np.pi * 0.35 * 128
    assert 0.8 * circumference < between.sum() < 2.2 * circumference


@pytest.mark.parametrize("texture", ["striped", "dotted"])
def test_textures_move_with_their_object(texture):
    image = draw.render(_alone("star", texture=texture, x=0.40, y=0.50), 100)
    moved = draw.render(_alone("star", texture=texture, x=0.55, y=0.45), 100)
    difference = np.roll(image, (-5, 15), axis=(0, 1)).astype(int) - moved
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_textures_differ_in_tone_at_every_resolution(colour, resolution):
    middle = slice(resolution * 3 // 8, resolution * 5 // 8)
    tone, spread = {}, {}
    for texture in shapes.TEXTURES:
        patch = draw.render(_alone("square", texture=texture, colour=colour), resolution)[middle, middle]
        tone[texture], spread[texture] = patch.mean(), patch.std(axis=(0, 1)).max()
    # The texture shows at 128 and 64 px; at 32 px hardly more than its mean tone.
    low, high = {128: (26, 128), 64: (20, 128), 32: (0, 24)}[resolution]
    assert tone["striped"] < 0.85 * tone["plain"] and tone["dotted"] > tone["plain"] + 15
    assert spread["plain"] == 0
    assert low < spread["striped"] < high and low < spread["dotted"] < high


def test_small_renders_are_averages_of_large_ones():
    for index in range(12):
        scene, _ = shapes.example("train", index)
        large = draw.render(scene, 128).astype(float).reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        assert np.abs(large - draw.render(scene, 32)).mean() < 2.5


def test_objects_at_the_border_are_cut_off():
    scene = _alone("circle", x=0.1)
    whole = draw.render(_alone("circle", x=0.5), 50)
    np.testing.assert_array_equal(draw.render(scene, 50)[:, :25], whole[:, 20:45])


def test_second_object_leaves_the_first_alone():
    scene, _ = next(example for example in (shapes.example("train", i) for i in range(20)) if example[0].relation)
    single = dataclasses.replace(scene, objects=scene.objects[:1], relation=None)
    both, first = draw.render(scene, 64), draw.render(single, 64)
    entry = scene.objects[0]
    y, x = (np.mgrid[:64, :64] + 0.5) / 64
    box = np.maximum(np.abs(x - entry.x), np.abs(y - entry.y)) < entry.radius
    np.testing.assert_array_equal(both[box], first[box])
    assert (both != first).any()
