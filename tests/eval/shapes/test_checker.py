import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from unclip_jax.data.captioned_shapes import render as draw
from unclip_jax.data.captioned_shapes import scenes as shapes
from unclip_jax.data.captioned_shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    Object,
    ObjectQuery,
    Query,
    Scene,
)
from unclip_jax.eval.shapes import checker as shapes_checker
from unclip_jax.eval.shapes.checker import Found, Verdict

NOTHING = Verdict(count=False, colour=False, shape=False, relation=None, all=False)


def _examples(count: int, start: int = 0) -> list[tuple[Scene, Query]]:
    splits = [shapes.SPLITS[1 + index % 2] for index in range(count)]
    drawn = [shapes.example(split, start + index) for index, split in enumerate(splits)]
    return [(scene, shapes.parse(caption)) for scene, caption in drawn]


def _accuracy(images: list[np.ndarray], queries: list[Query]) -> float:
    verdicts = [shapes_checker.check(image, query) for image, query in zip(images, queries, strict=True)]
    return float(np.mean([verdict.all for verdict in verdicts]))


def _degrade(image: np.ndarray, sigma: float, noise: float, seed: int) -> np.ndarray:
    blurred = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0))
    noisy = blurred + np.random.default_rng(seed).normal(0, noise, image.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _alone(background: str, **fields) -> np.ndarray:
    fields = {"size": "large", "texture": "plain", "x": 0.5, "y": 0.5, "radius": 0.2} | fields
    return draw.render(Scene(objects=(Object(**fields),), background=background, relation=None), 128)


def _found(colour: str | None, shape: str | None, x: float = 0.5, y: float = 0.5) -> Found:
    return Found(colour=colour, shape=shape, x=x, y=y, area=0.05, overlap=0.95)


RED_ABOVE_BLUE = shapes.parse("a red circle above a blue square")


@pytest.mark.slow
@pytest.mark.parametrize(("resolution", "count", "least"), [(128, 300, 0.99), (64, 150, 0.97), (256, 30, 0.96)])
def test_true_images_pass(resolution, count, least):
    scenes, queries = zip(*_examples(count), strict=True)
    assert _accuracy([draw.render(scene, resolution) for scene in scenes], list(queries)) >= least


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "noise"), [(1.0, 8.0), (2.0, 4.0)])
def test_true_images_pass_blurred_and_noisy(sigma, noise):
    scenes, queries = zip(*_examples(150, start=500), strict=True)
    images = [_degrade(draw.render(scene, 128), sigma, noise, seed) for seed, scene in enumerate(scenes)]
    assert _accuracy(images, list(queries)) >= 0.97


@pytest.mark.parametrize("colour", COLOURS)
def test_every_attribute_is_read_right(colour):
    for shape in SHAPES:
        for number, background in enumerate(BACKGROUNDS):
            texture = shapes.TEXTURES[(number + len(shape)) % 3]
            image = _alone(background, colour=colour, shape=shape, texture=texture, x=0.45, y=0.55)
            (found,) = shapes_checker.read(image)
            assert (found.colour, found.shape) == (colour, shape), (shape, texture, background)
            assert found.overlap > 0.85
            # The centroids of triangle and star lie off the centre of their boxes.
            assert abs(found.x - 0.45) < 0.01 and abs(found.y - 0.55) < 0.07
            assert 0.01 < found.area < 4 * 0.2**2


@pytest.mark.slow
def test_shuffled_captions_are_at_chance():
    scenes, queries = zip(*_examples(160, start=900), strict=True)
    images = [draw.render(scene, 128) for scene in scenes]
    assert _accuracy(images, list(queries[1:] + queries[:1])) < 0.05


@pytest.mark.slow
def test_one_wrong_word_is_noticed():
    rng = np.random.default_rng(0)

    def other(words, word):
        return rng.choice([option for option in words if option != word])

    for scene, query in _examples(80, start=1300):
        found = shapes_checker.read(draw.render(scene, 128))
        for index, wanted in enumerate(query.objects):
            for field, words in (("colour", tuple(COLOURS)), ("shape", SHAPES)):
                changed = dataclasses.replace(wanted, **{field: str(other(words, getattr(wanted, field)))})
                objects = tuple(changed if i == index else entry for i, entry in enumerate(query.objects))
                verdict = shapes_checker.judge(found, dataclasses.replace(query, objects=objects))
                assert verdict.count and not verdict.all
                assert not getattr(verdict, field)
                assert getattr(verdict, "shape" if field == "colour" else "colour")
        if query.relation is not None:
            for relation in set(RELATIONS) - {query.relation}:
                verdict = shapes_checker.judge(found, dataclasses.replace(query, relation=relation))
                assert verdict == Verdict(count=True, colour=True, shape=True, relation=False, all=False)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_image_fails_everything(background):
    image = np.full((128, 128, 3), BACKGROUNDS[background], np.uint8)
    assert shapes_checker.read(image) == []
    assert shapes_checker.check(image, shapes.parse("a red circle")) == NOTHING
    assert shapes_checker.check(image, RED_ABOVE_BLUE) == dataclasses.replace(NOTHING, relation=False)


def test_pure_noise_fails_everything():
    for seed in range(5):
        image = np.random.default_rng(seed).integers(0, 256, (128, 128, 3)).astype(np.uint8)
        for text in ("a red circle", "a green ring"):
            assert not shapes_checker.check(image, shapes.parse(text)).all


def test_specks_are_ignored():
    image = _alone("white", colour="red", shape="circle")
    image[10:16, 100:106] = (20, 40, 220)
    image[60:64, 94:98] = (20, 160, 40)
    (found,) = shapes_checker.read(image)
    assert (found.colour, found.shape) == ("red", "circle")


def test_objects_of_two_colours_that_touch_are_told_apart():
    image = np.full((128, 128, 3), 250, np.uint8)
    image[44:84, 24:64] = COLOURS["red"]
    image[44:84, 64:104] = COLOURS["blue"]
    found = sorted(shapes_checker.read(image), key=lambda entry: entry.x)
    assert [(entry.colour, entry.shape) for entry in found] == [("red", "square"), ("blue", "square")]


def test_what_has_no_hue_has_no_colour():
    image = np.full((128, 128, 3), 250, np.uint8)
    image[40:80, 40:80] = 110
    (found,) = shapes_checker.read(image)
    assert (found.colour, found.shape) == (None, "square")


def test_what_is_like_no_shape_has_none():
    image = np.full((128, 128, 3), 250, np.uint8)
    image[56:72, 14:114] = COLOURS["green"]
    (found,) = shapes_checker.read(image)
    assert (found.colour, found.shape) == ("green", None)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([_found("red", "circle", y=0.3), _found("blue", "square", y=0.7)], (True, True, True, True, True)),
        ([_found("blue", "square", y=0.7), _found("red", "circle", y=0.3)], (True, True, True, True, True)),
        ([_found("red", "circle", y=0.7), _found("blue", "square", y=0.3)], (True, True, True, False, False)),
        # Right words on the wrong objects: colours and shapes are all there, but not bound together.
        ([_found("red", "square", y=0.3), _found("blue", "circle", y=0.7)], (True, True, True, False, False)),
        ([_found("red", "star", y=0.3), _found("blue", "square", y=0.7)], (True, True, False, True, False)),
        (
            [_found("red", "circle", y=0.3), _found("green", "square", y=0.7)],
            (True, False, True, True, False),
        ),
        # Nothing tells which of two equal objects should be above.
        (
            [_found("red", "circle", y=0.3), _found("red", "circle", y=0.7)],
            (True, False, False, False, False),
        ),
        # Above, but further aside than up.
        (
            [_found("red", "circle", x=0.1, y=0.4), _found("blue", "square", x=0.9)],
            (True, True, True, False, False),
        ),
        ([_found("red", "circle", y=0.3)], (False, False, False, False, False)),
        (
            [_found("red", "circle", y=0.3), *2 * [_found("blue", "square")]],
            (False, False, False, False, False),
        ),
    ],
)
def test_judge(found, expected):
    assert dataclasses.astuple(shapes_checker.judge(found, RED_ABOVE_BLUE)) == expected


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_have_the_directions_of_the_image(relation):
    x, y = {"left of": (0.2, 0.5), "right of": (0.8, 0.5), "above": (0.5, 0.2), "below": (0.5, 0.8)}[relation]
    found = [_found("red", "ring", x=x, y=y), _found("blue", "ring")]
    wanted = tuple(ObjectQuery(shape="ring", colour=colour) for colour in ("red", "blue"))
    for asked in RELATIONS:
        verdict = shapes_checker.judge(found, Query(objects=wanted, relation=asked))
        assert verdict.relation == (asked == relation)


def test_one_object_has_no_relation():
    verdict = shapes_checker.judge([_found("red", "circle")], shapes.parse("a red circle"))
    assert verdict == Verdict(count=True, colour=True, shape=True, relation=None, all=True)


@pytest.mark.parametrize("colour", ["red", "green", None])
def test_a_colour_that_is_not_asked_for_is_not_judged(colour):
    found = [_found(colour, "circle", y=0.3), _found("blue", "square", y=0.7)]
    verdict = shapes_checker.judge(found, shapes.parse("a circle above a blue square"))
    assert verdict == Verdict(count=True, colour=True, shape=True, relation=True, all=True)
    verdict = shapes_checker.judge(found, shapes.parse("a square above a circle"))
    assert verdict == Verdict(count=True, colour=True, shape=True, relation=False, all=False)
