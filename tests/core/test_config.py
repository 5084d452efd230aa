import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from unclip_jax.core.config import from_json, suggest, to_json
from unclip_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    width: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    size: tuple[int, int] = (4, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    image_size: int
    channels: tuple[int, ...] = (1, 2)
    text: Text | None = None
    side: Text | Pixels | None = None
    rate: float = 0.5
    learned: bool = False
    interval: tuple[float, float] | None = None
    tags: dict[str, int] = dataclasses.field(default_factory=dict)
    stages: tuple[Text, ...] = ()
    free: Any = None
    folder: Path = Path("a")
    files: tuple[Path, ...] | None = None

    def __post_init__(self) -> None:
        if self.image_size % 2:
            raise ValueError(f"image_size {self.image_size} is odd; give an even one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    model: Model
    name: str = "x"


FULL = Run(
    model=Model(
        image_size=8,
        channels=(3, 4, 5),
        text=Text(width=2),
        side=Pixels(size=(1, 2)),
        rate=1e-4,
        learned=True,
        interval=(0.0, 0.5),
        tags={"a": 1},
        stages=(Text(), Text(dtype="bfloat16")),
        free={"anything": [1, None]},
        folder=Path("/b/c"),
        files=(Path("x.png"), Path("../y")),
    )
)


@pytest.mark.parametrize("value", [FULL, Run(model=Model(image_size=2))])
def test_round_trip_through_text(value):
    assert from_json(Run, json.loads(json.dumps(to_json(value)))) == value


def test_lists_become_tuples_and_ints_become_floats():
    model = from_json(Model, {"image_size": 2, "channels": [7], "rate": 1})
    assert model.channels == (7,)
    assert model.rate == 1.0 and type(model.rate) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": {"widht": 1}}, "config.model.text.widht: unknown field; did you mean 'width'?"),
        ({"zzz": 1}, "config.model.zzz: unknown field; known are image_size, channels"),
        ({"image_size": "8"}, "config.model.image_size: expected a value of type int, got '8' (str)"),
        ({"image_size": True}, "config.model.image_size: expected a value of type int, got True (bool)"),
        ({"image_size": 8.0}, "config.model.image_size: expected a value of type int, got 8.0 (float)"),
        ({"learned": 1}, "config.model.learned: expected a value of type bool, got 1 (int)"),
        ({"rate": "fast"}, "config.model.rate: expected a value of type float"),
        ({"text": {"dtype": "f8"}}, "config.model.text.dtype: 'f8' (str) is not one of 'float32', "),
        ({"text": 3}, "config.model.text: expected an object with the fields of Text, got 3 (int)"),
        ({"channels": 3}, "config.model.channels: expected a list, got 3 (int)"),
        ({"channels": [1, "2"]}, "config.model.channels[1]: expected a value of type int"),
        ({"interval": [1.0]}, "config.model.interval: expected a list of 2"),
        ({"stages": [{}, {"dtype": 1}]}, "config.model.stages[1].dtype: 1 (int) is not one of"),
        ({"tags": {"a": "b"}}, "config.model.tags.a: expected a value of type int"),
        ({"side": {"size": [1, "2"]}}, "config.model.side.size[1]: expected a value of type int"),
        ({"folder": 3}, "config.model.folder: expected a path, got 3 (int)"),
        ({"side": 3}, "config.model.side: expected Text or Pixels, got 3 (int)"),
        ({"image_size": 3}, "config.model: image_size 3 is odd; give an even one"),
    ],
)
def test_errors_name_the_path_of_the_field(change, message):
    data = to_json(FULL)
    data["model"] |= change
    with pytest.raises(UserError) as error:
        from_json(Run, data)
    assert str(error.value).startswith(message)


def test_missing_field():
    with pytest.raises(UserError, match=r"bundle\.model\.image_size: missing; Model has no default for it"):
        from_json(Run, {"model": {}}, path="bundle")


def test_what_has_no_json_form_is_a_bug():
    with pytest.raises(TypeError, match="set has no JSON form"):
        to_json({"a": {1}})


def test_suggest():
    assert suggest("decodr", ["prior", "decoder"]) == "did you mean 'decoder'?"
    assert suggest("x", ["prior", "decoder"]) == "known are prior, decoder"
    assert suggest("x", []) == "none is known"


class Shape:
    """Any of the shapes below."""

    @staticmethod
    def variants():
        return {"disc": Disc, "box": Box}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disc(Shape):
    TAG: ClassVar = ("shape", "disc")
    RENAMED: ClassVar = {"r": "radius"}
    REMOVED: ClassVar = {"hollow": False}

    radius: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box(Shape):
    TAG: ClassVar = ("shape", "box")

    radius: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    any: Shape = Disc()
    one: Disc | Box = Disc()
    disc: Disc = Disc()


@pytest.mark.parametrize("shape", [Disc(radius=2.0), Box(radius=3.0)])
def test_tags_tell_classes_apart(shape):
    drawing = Drawing(any=shape, one=shape)
    data = json.loads(json.dumps(to_json(drawing)))
    assert data["any"] == {"shape": shape.TAG[1], "radius": shape.radius}
    assert from_json(Drawing, data) == drawing


def test_a_tag_may_be_left_out_where_one_class_is_possible():
    assert from_json(Drawing, {"disc": {"radius": 2.0}}).disc == Disc(radius=2.0)


def test_older_names_are_read():
    assert from_json(Disc, {"r": 2.0, "hollow": False}) == Disc(radius=2.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"any": {"radius": 1.0}}, "config.any.shape: missing; it is one of disc, box"),
        ({"any": {"shape": "disk"}}, "config.any.shape: 'disk' (str) is not known; did you mean 'disc'?"),
        ({"any": {"shape": ["disc"]}}, "config.any.shape: ['disc'] (list) is not known"),
        ({"disc": {"shape": "box"}}, "config.disc.shape: expected 'disc'"),
        ({"disc": {"r": 1.0, "radius": 1.0}}, "config.disc: both r and radius are given"),
        ({"disc": {"hollow": True}}, "config.disc.hollow: this version knows only False"),
    ],
)
def test_tags_and_older_names_that_cannot_be_read(data, message):
    with pytest.raises(UserError) as caught:
        from_json(Drawing, data)
    assert str(caught.value).startswith(message)
