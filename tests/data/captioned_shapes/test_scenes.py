import re
from collections import Counter

import numpy as np
import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.data.captioned_shapes import scenes as shapes
from unclip_jax.data.captioned_shapes.scenes import Object, ObjectQuery, Query, Scene


def _examples(split: shapes.Split, count: int) -> list[tuple[Scene, str]]:
    return [shapes.example(split, index) for index in range(count)]


def _pairs(scene: Scene) -> list[tuple[str, str]]:
    return [(entry.colour, entry.shape) for entry in scene.objects]


def _red_above_blue() -> Scene:
    first = Object(shape="circle", colour="red", size="small", texture="plain", x=0.5, y=0.3, radius=0.18)
    second = Object(shape="square", colour="blue", size="large", texture="striped", x=0.5, y=0.7, radius=0.18)
    return Scene(objects=(first, second), background="white", relation="above")


def test_example_depends_on_split_and_index_only():
    assert shapes.example("train", 7) == shapes.example("train", 7)
    firsts = [shapes.example(split, index)[0] for split in shapes.SPLITS for index in range(50)]
    assert len(set(firsts)) == len(firsts)


def test_examples_are_the_same_for_ever():
    # Trained weights and published scores refer to these very scenes.
    scene, caption = shapes.example("train", 7)
    assert caption == "an image of a striped red square"
    assert scene == Scene(
        objects=(
            Object(
                shape="square",
                colour="red",
                size="large",
                texture="striped",
                x=0.51364,
                y=0.51793,
                radius=0.33248,
            ),
        ),
        background="black",
        relation=None,
    )


def test_held_out_pairs_leave_every_word_common():
    assert len(shapes.HELD_OUT) == 6
    colours = Counter(colour for colour, _ in shapes.HELD_OUT)
    assert max(colours.values()) == 1
    assert {shape for _, shape in shapes.HELD_OUT} == set(shapes.SHAPES)
    seen = [pair for scene, _ in _examples("train", 2000) for pair in _pairs(scene)]
    for words, column in ((shapes.COLOURS, 0), (shapes.SHAPES, 1)):
        counts = Counter(pair[column] for pair in seen)
        for word in words:
            assert counts[word] > 0.6 * len(seen) / len(words), word


@pytest.mark.parametrize("split", ["train", "test_seen"])
def test_seen_splits_never_show_a_held_out_pair(split):
    for scene, _ in _examples(split, 1500):
        assert not shapes.HELD_OUT & set(_pairs(scene))


def test_unseen_scenes_always_show_a_held_out_pair():
    scenes = [scene for scene, _ in _examples("test_unseen", 600)]
    assert all(shapes.HELD_OUT & set(_pairs(scene)) for scene in scenes)
    held_out = [[pair in shapes.HELD_OUT for pair in _pairs(scene)] for scene in scenes if scene.relation]
    assert {(True, False), (False, True), (True, True)} == {tuple(row) for row in held_out}


def test_scenes_lie_in_the_image_apart_and_in_relation():
    scenes = [scene for scene, _ in _examples("train", 1500)]
    alone = [scene for scene in scenes if scene.relation is None]
    assert 0.36 < len(alone) / len(scenes) < 0.44
    for scene in scenes:
        assert len(scene.objects) == (1 if scene.relation is None else 2)
        assert len(set(_pairs(scene))) == len(scene.objects)
        for entry in scene.objects:
            assert entry.radius < min(entry.x, entry.y) and entry.radius < 1 - max(entry.x, entry.y)
            across = 2 * 32 * entry.radius
            centred = scene.relation is None and max(abs(entry.x - 0.5), abs(entry.y - 0.5)) <= 0.0201
            low, high = {
                ("small", True): (13.4, 14.5),
                ("large", True): (21, 22.5),
                ("small", False): (11.1, 11.9),
                ("large", False): (13.8, 14.6),
            }[entry.size, centred]
            assert low <= across <= high
        if scene.relation is not None:
            first, second = scene.objects
            right, down = first.x - second.x, first.y - second.y
            along = {"left of": -right, "right of": right, "above": -down, "below": down}[scene.relation]
            assert along > first.radius + second.radius + 0.03
            assert min(abs(right), abs(down)) <= 0.041
    assert {scene.relation for scene in scenes} == {None, *shapes.RELATIONS}
    assert {scene.background for scene in scenes} == set(shapes.BACKGROUNDS)


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_captions_parse_back_to_what_they_mention(split):
    for scene, caption in _examples(split, 1200):
        query = shapes.parse(caption)
        assert query.relation == scene.relation
        assert query.background in (None, scene.background)
        assert ("background" in caption) == (query.background is not None)
        for wanted, entry in zip(query.objects, scene.objects, strict=True):
            assert wanted.shape == entry.shape
            assert wanted.colour == entry.colour or (split == "train" and wanted.colour is None)
            assert wanted.size in (None, entry.size)
            assert wanted.texture in (None, entry.texture)
        words = re.findall(r"small|large|plain|striped|dotted", caption)
        assert len(words) == sum((w.size is not None) + (w.texture is not None) for w in query.objects)


def test_captions_mention_the_optional_attributes_about_half_the_time():
    pairs = [(scene, shapes.parse(caption)) for scene, caption in _examples("train", 2000)]
    entries = [both for scene, query in pairs for both in zip(scene.objects, query.objects, strict=True)]
    assert 0.46 < np.mean([query.background is not None for _, query in pairs]) < 0.54
    assert 0.46 < np.mean([wanted.size is not None for _, wanted in entries]) < 0.54
    textured = [wanted for entry, wanted in entries if entry.texture != "plain"]
    plain = [wanted for entry, wanted in entries if entry.texture == "plain"]
    assert 0.46 < np.mean([wanted.texture is not None for wanted in textured]) < 0.54
    assert 0.2 < np.mean([wanted.texture is not None for wanted in plain]) < 0.3


@pytest.mark.slow
def test_colours_are_omitted_in_training_only():
    for split, (low, high) in zip(shapes.SPLITS, ((0.30, 0.37), (0, 0), (0, 0)), strict=True):
        queries = [shapes.parse(caption) for _, caption in _examples(split, 2000)]
        omitted = [wanted.colour is None for query in queries for wanted in query.objects]
        assert low <= np.mean(omitted) <= high, split


PLACE = "at the top|at the bottom|on the left|on the right"


@pytest.mark.slow
def test_places_are_said_in_training_only():
    for split, (low, high) in zip(shapes.SPLITS, ((0.46, 0.54), (0, 0), (0, 0)), strict=True):
        for two in (True, False):
            captions = [caption for scene, caption in _examples(split, 2000) if bool(scene.relation) == two]
            assert low <= np.mean([bool(re.search(PLACE, caption)) for caption in captions]) <= high, split


def test_an_object_alone_is_where_its_caption_says():
    towards = {"at the top": (0, -1), "at the bottom": (0, 1), "on the left": (-1, 0), "on the right": (1, 0)}
    places = Counter()
    for scene, caption in _examples("train", 1500):
        if scene.relation is None:
            offset = np.array([scene.objects[0].x, scene.objects[0].y]) - 0.5
            said = re.findall(PLACE, caption)
            places.update(said)
            if said:
                assert offset @ towards[said[0]] == np.abs(offset).max() > 0.15
            else:
                assert np.abs(offset).max() < 0.0201
    assert min(places[place] for place in towards) > 40


@pytest.mark.parametrize("relation", shapes.RELATIONS)
def test_places_are_those_of_the_picture(relation):
    ends = {"at the top": (0.5, 0.2), "at the bottom": (0.5, 0.8)}
    ends |= {"on the left": (0.2, 0.5), "on the right": (0.8, 0.5)}
    scene = next(scene for scene, _ in _examples("train", 500) if scene.relation == relation)
    text = shapes.caption(scene, np.random.default_rng(1), say_places=1.0)
    said = [np.array(ends[place]) for place in re.findall("|".join(ends), text)]
    real = [np.array([entry.x, entry.y]) for entry in scene.objects]
    assert (said[0] - said[1]) @ (real[0] - real[1]) > 0.1
    assert shapes.parse(text).relation == relation


def test_captions_read_as_english():
    captions = [caption for _, caption in _examples("train", 3000)]
    assert all(re.fullmatch(r"[a-z ]+", caption) for caption in captions)
    assert not [caption for caption in captions if re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", caption)]
    words = {*shapes.SIZES, *shapes.TEXTURES, *shapes.COLOURS, *shapes.SHAPES, *shapes.BACKGROUNDS}
    skeletons = Counter(
        " ".join(word for word in caption.split() if word not in words and word not in ("a", "an"))
        for caption in captions
        if "background" not in caption
    )
    alone = [skeleton for skeleton in skeletons if not re.search("|".join(shapes.RELATIONS), skeleton)]
    above = [skeleton for skeleton in skeletons if "above" in skeleton]
    places = [skeleton for skeleton in alone if re.search(" top| bottom| left| right", skeleton)]
    assert len(alone) - len(places) == 5 and len(above) == 5 and len(places) == (3 + 5) * 4


def test_captions_of_one_scene_include_the_plainest_form():
    rng = np.random.default_rng(0)
    captions = Counter(shapes.caption(_red_above_blue(), rng) for _ in range(2000))
    assert captions["a red circle above a blue square"] > 0
    assert captions["above a blue square there is a red circle"] > 0
    assert captions["a blue square with a red circle above it"] > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A pink ring", Query(objects=(ObjectQuery(shape="ring", colour="pink"),))),
        (
            "a dotted ring with a red cross above it",
            Query(
                objects=(ObjectQuery(shape="cross", colour="red"), ObjectQuery(shape="ring", texture="dotted")),
                relation="above",
            ),
        ),
        (
            "draw me a large dotted orange star, please, on a grey background",
            Query(
                objects=(ObjectQuery(shape="star", colour="orange", size="large", texture="dotted"),),
                background="grey",
            ),
        ),
        (
            "to the left of a small red cross there is a striped blue circle",
            Query(
                objects=(
                    ObjectQuery(shape="circle", colour="blue", texture="striped"),
                    ObjectQuery(shape="cross", colour="red", size="small"),
                ),
                relation="left of",
            ),
        ),
        (
            "a pink star on the right and a large ring on the left on a white background",
            Query(
                objects=(ObjectQuery(shape="star", colour="pink"), ObjectQuery(shape="ring", size="large")),
                relation="right of",
                background="white",
            ),
        ),
        (
            "a green square with a cyan triangle below it on a black background",
            Query(
                objects=(
                    ObjectQuery(shape="triangle", colour="cyan"),
                    ObjectQuery(shape="square", colour="green"),
                ),
                relation="below",
                background="black",
            ),
        ),
    ],
)
def test_parse_reads_free_captions(text, expected):
    assert shapes.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog",
        "a red circle and a blue square",
        "a red circle at the top and a blue square on the left",
        "a red circle above",
        "a red circle above it above a pink ring",
    ],
)
def test_parse_refuses_what_it_cannot_read(text):
    with pytest.raises(UserError, match="cannot read the caption"):
        shapes.parse(text)


def test_json_round_trip():
    for scene, _ in _examples("train", 50):
        assert Scene.from_json(scene.to_json()) == scene
        assert Scene.from_json(scene.to_json().encode()) == scene
