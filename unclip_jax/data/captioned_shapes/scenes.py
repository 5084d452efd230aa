"""Captioned scenes of coloured shapes: the vocabulary, the scenes, their English and the way back.

A scene holds one or two objects. Each has a shape, a colour, a size and a texture; two objects stand in a
relation: `objects[0]` is `relation` of `objects[1]` ("above": the first is above the second). Coordinates are
in units of the image's side, x to the right, y downwards. Six of the 48 (colour, shape) pairs are `HELD_OUT`:
they never occur in training, so a split made of them measures whether a model composes what it has learnt.

`example(split, index)` is a pure function: example 7 of "train" is the same scene and caption for ever.
"""

import dataclasses
import json
import re
from typing import Literal, TypeVar, get_args

import numpy as np

from unclip_jax.core.errors import UserError

T = TypeVar("T")
Split = Literal["train", "test_seen", "test_unseen"]
SPLITS: tuple[Split, ...] = get_args(Split)

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
RELATIONS = ("left of", "right of", "above", "below")
# Where objects[0] and objects[1] then are.
PLACES = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}

# Hues at least 20 degrees apart and strong saturation: shades and tints of a colour keep its hue, so the
# colour of a textured or slightly miscoloured object can still be recognised.
COLOURS = {
    "red": (222, 38, 38),
    "orange": (244, 122, 16),
    "yellow": (250, 216, 28),
    "green": (34, 160, 62),
    "cyan": (36, 198, 214),
    "blue": (38, 82, 224),
    "purple": (126, 44, 186),
    "pink": (248, 108, 178),
}
BACKGROUNDS = {
    "white": (250, 250, 248),
    "cream": (245, 232, 204),
    "grey": (142, 144, 148),
    "black": (20, 20, 24),
}

# Each shape once and no colour twice, so every word stays common in training.
HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("green", "ring"),
        ("blue", "triangle"),
        ("yellow", "cross"),
        ("purple", "square"),
        ("pink", "circle"),
    }
)

_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_SEEN = tuple(pair for pair in _PAIRS if pair not in HELD_OUT)
_UNSEEN = tuple(pair for pair in _PAIRS if pair in HELD_OUT)

_TWO_OBJECTS_PROBABILITY = 0.6
_COLOUR_OMITTED_PROBABILITY = 1 / 3
_PLACES_PROBABILITY = 1 / 2
_OFF_CENTRE_PROBABILITY = 1 / 2
_RADII_ALONE = {"small": (0.21, 0.225), "large": (0.33, 0.35)}
_RADII_OF_TWO = {"small": (0.175, 0.185), "large": (0.217, 0.227)}
_MARGIN, _GAP = 0.015, (0.035, 0.055)
# Small, less than 3 pixels of 128, so that what a decoder has to guess of a noisy image is the shape, not the place.
_JITTER = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Object:
    """One shape. (x, y): centre; radius: half the side of the box around it; in units of the image's side."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two objects on a background. relation: of objects[0] to objects[1]; None for one object."""

    objects: tuple[Object, ...]
    background: str
    relation: str | None

    def to_json(self) -> str:
        """Write one line of JSON; `Scene.from_json` is its inverse."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Scene":
        """Read the scene that `to_json` wrote; bytes are accepted since TFDS returns text as bytes."""
        fields = json.loads(text)
        return cls(**fields | {"objects": tuple(Object(**entry) for entry in fields["objects"])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectQuery:
    """What a caption says of one object; None where it is silent."""

    shape: str
    colour: str | None = None
    size: str | None = None
    texture: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """What a caption demands. relation: of objects[0] to objects[1]; None for one object."""

    objects: tuple[ObjectQuery, ...]
    relation: str | None = None
    background: str | None = None


def example(split: Split, index: int) -> tuple[Scene, str]:
    """Return scene and caption number `index` of a split: a pure function of the two.

    A third of the objects in captions of train go without their colour, since colours alone identify most images of a
    batch apart and a contrastive model could do without shapes. Half of the captions of two objects in train say where
    each one is: who is where according to "above" takes both nouns, their order and the relation, of which none alone
    is worth anything, and a model finds that far sooner once it has learnt from plain words what goes at the top.
    Captions of the test splits always name colours and relations.
    """
    rng = np.random.default_rng(np.random.SeedSequence((SPLITS.index(split), index)))
    if split != "train":
        scene = sample_scene(rng, unseen=split == "test_unseen")
        return scene, caption(scene, rng)
    scene = sample_scene(rng, off_centre=_OFF_CENTRE_PROBABILITY)
    return scene, caption(scene, rng, omit_colour=_COLOUR_OMITTED_PROBABILITY, say_places=_PLACES_PROBABILITY)


def sample_scene(rng: np.random.Generator, *, unseen: bool = False, off_centre: float = 0.0) -> Scene:
    """Sample a random scene.

    Args:
        unseen: False: no object is in HELD_OUT; True: one is, or both are.
        off_centre: the probability that an object alone stands where one of two would, and nothing beside it.
    """
    background = _choice(rng, tuple(BACKGROUNDS))
    first = _choice(rng, _UNSEEN if unseen else _SEEN)
    if rng.random() >= _TWO_OBJECTS_PROBABILITY:
        # Without a chance of it no random number is used: the test splits keep the scenes that scores refer to.
        if off_centre and rng.random() < off_centre:
            one, _ = _place_two(rng, (first, first), _choice(rng, RELATIONS))
            return Scene(objects=(one,), background=background, relation=None)
        size = _choice(rng, SIZES)
        x, y = 0.5 + rng.uniform(-_JITTER, _JITTER, 2)
        alone = _make_object(rng, first, size, x, y, rng.uniform(*_RADII_ALONE[size]))
        return Scene(objects=(alone,), background=background, relation=None)
    others = _PAIRS if unseen else _SEEN
    second = _choice(rng, tuple(pair for pair in others if pair != first))
    pairs = (second, first) if rng.random() < 0.5 else (first, second)
    relation = _choice(rng, RELATIONS)
    return Scene(objects=_place_two(rng, pairs, relation), background=background, relation=relation)


def caption(scene: Scene, rng: np.random.Generator, *, omit_colour: float = 0.0, say_places: float = 0.0) -> str:
    """Sample an English caption: always shapes and relation; size, texture and background now and then.

    Args:
        omit_colour: the probability that an object's colour is left unsaid.
        say_places: the probability that the relation is stated by the two places, "a star at the top and ...".
    """
    nouns = [_noun_phrase(entry, rng, omit_colour) for entry in scene.objects]
    background = f" on a {scene.background} background" if rng.random() < 0.5 else ""
    # Without a chance of places no random number is used: the test splits keep the captions that scores refer to.
    if scene.relation is not None and say_places and rng.random() < say_places:
        located = [f"{noun} {place}" for noun, place in zip(nouns, PLACES[scene.relation], strict=True)]
        templates = ("{0} and {1}", "a picture of {0} and {1}", "there is {0} and {1}")
        return _choice(rng, templates).format(*located) + background
    if scene.relation is None:
        nouns = [f"{nouns[0]}{_place(scene.objects[0])}"]
        templates = ("{0}", "a picture of {0}", "there is {0}", "an image of {0}", "a drawing of {0}")
    else:
        templates = (
            "{0} {relation} {1}",
            "a picture of {0} {relation} {1}",
            "there is {0} {relation} {1}",
            "{relation} {1} there is {0}",
            "{1} with {0} {relation} it",
        )
    relation = scene.relation
    if relation in ("left of", "right of"):
        relation = _choice(rng, (relation, f"to the {relation}"))
    return _choice(rng, templates).format(*nouns, relation=relation) + background


_NOUN = re.compile(
    rf"\b(?:(?P<size>{'|'.join(SIZES)}) )?(?:(?P<texture>{'|'.join(TEXTURES)}) )?"
    rf"(?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<shape>{'|'.join(SHAPES)})\b"
)
_RELATION = re.compile(rf"\b(?P<relation>{'|'.join(RELATIONS)})\b(?P<inverse> it\b)?")
_PLACE = re.compile(r"\b(?:on the left|on the right|at the top|at the bottom)\b")
_BACKGROUND = re.compile(rf"\b(?P<background>{'|'.join(BACKGROUNDS)}) background\b")


def parse(text: str) -> Query:
    """Parse what a caption demands. Every caption of `caption` parses back to the attributes it mentions.

    Raises UserError unless the text names one object, or two objects and one relation between them, or two objects
    and the place of each.
    """
    text = text.lower()
    nouns, relations = list(_NOUN.finditer(text)), list(_RELATION.finditer(text))
    by_places = [relation for relation, places in PLACES.items() if tuple(_PLACE.findall(text)) == places]
    if (len(nouns), len(relations) + len(by_places)) not in ((1, 0), (2, 1)):
        raise UserError(
            f"cannot read the caption {text!r}: name one object, or two with a relation, "
            "as in 'a red circle above a blue square'"
        )
    background_match = _BACKGROUND.search(text)
    background = background_match["background"] if background_match else None
    objects = tuple(ObjectQuery(**noun.groupdict()) for noun in nouns)
    relation = by_places[0] if by_places else None
    if relations:
        relation = relations[0]["relation"]
        # "above a square there is a circle", "a square with a circle above it": the second is named first.
        if relations[0]["inverse"] or relations[0].start() < nouns[0].start():
            objects = objects[::-1]
    return Query(objects=objects, relation=relation, background=background)


def _choice(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]


def _make_object(
    rng: np.random.Generator, pair: tuple[str, str], size: str, x: float, y: float, radius: float
) -> Object:
    colour, shape = pair
    # Five digits keep the JSON short; the fifth is a thousandth of a pixel.
    place = {"x": round(float(x), 5), "y": round(float(y), 5), "radius": round(float(radius), 5)}
    return Object(shape=shape, colour=colour, size=size, texture=_choice(rng, TEXTURES), **place)


def _place_two(rng: np.random.Generator, pairs: tuple[tuple[str, str], ...], relation: str) -> tuple[Object, ...]:
    """Place two objects side by side along the relation's axis, in the middle of the image, give or take the jitter."""
    sizes = [_choice(rng, SIZES) for _ in pairs]
    radii = [rng.uniform(*_RADII_OF_TWO[size]) for size in sizes]
    first_leads = relation in ("left of", "above")
    near, far = (radii[0], radii[1]) if first_leads else (radii[1], radii[0])
    gap = rng.uniform(*_GAP)
    start = (1 - 2 * near - 2 * far - gap) / 2
    start += rng.uniform(-1, 1) * min(_JITTER, start - _MARGIN)
    along = [start + near, start + 2 * near + gap + far]
    across = 0.5 + rng.uniform(-_JITTER, _JITTER, 2)
    if not first_leads:
        along.reverse()
    horizontal = relation in ("left of", "right of")
    return tuple(
        _make_object(rng, pair, size, *((a, b) if horizontal else (b, a)), radius)
        for pair, size, a, b, radius in zip(pairs, sizes, along, across, radii, strict=True)
    )


def _place(entry: Object) -> str:
    """Return where an object alone is, after a space; nothing if that is the middle, give or take the jitter."""
    right, down = entry.x - 0.5, entry.y - 0.5
    if max(abs(right), abs(down)) < 2 * _JITTER:
        return ""
    if abs(right) > abs(down):
        return " on the left" if right < 0 else " on the right"
    return " at the top" if down < 0 else " at the bottom"


def _noun_phrase(entry: Object, rng: np.random.Generator, omit_colour: float) -> str:
    words = [entry.shape]
    # As with places, the test splits use no random number here.
    if omit_colour == 0 or rng.random() >= omit_colour:
        words.insert(0, entry.colour)
    # "plain" goes without saying more often than not.
    if rng.random() < (0.25 if entry.texture == "plain" else 0.5):
        words.insert(0, entry.texture)
    if rng.random() < 0.5:
        words.insert(0, entry.size)
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"
