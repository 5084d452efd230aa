"""Frozen dataclasses to JSON and back, strictly.

Every spec, every training config and every command's options are a frozen dataclass of numbers, strings, paths,
tuples, dicts and further dataclasses. `from_json(cls, to_json(value)) == value` holds for all of them. Reading checks
each value against the field's annotation; an error names the path of the field:

    config.model.widht: unknown field; did you mean 'width'?

A class says in class variables what its fields do not:

    TAG = ("network", "unet")            written first; distinguishes a class from others that may stand in its place
    RENAMED = {"depth": "num_layers"}    names that older files have
    REMOVED = {"parity": False}          fields that older files have, and the one value that still means the same
    UNTAGGED = {"model": ("network", "unet")}    the tag of what older files have in a field without one

Where a field is annotated with a class that has no fields of its own but a static method `variants`, any class of the
table that this returns may stand there; its tag says which.
"""

import dataclasses
import difflib
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, Union, overload, runtime_checkable

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import DataclassInstance, Json, JsonDict

T = TypeVar("T")
MAX_NUMBER = 10**300
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 20


@overload
def to_json(value: DataclassInstance) -> JsonDict: ...


@overload
def to_json(value: object) -> Json: ...


def to_json(value: object) -> Json:
    """Turn a dataclass, or anything that a field may hold, into what `json.dump` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = getattr(value, "TAG", None)
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return fields if tag is None else {tag[0]: tag[1], **fields}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_json(cls: type[T], data: object, path: str = "config") -> T:
    """Build the dataclass `cls` from what `to_json` made.

    Args:
        cls: a dataclass.
        data: the parsed JSON, a dict.
        path: what errors call the top of the tree.

    Raises:
        UserError: for a field that is unknown, missing, of the wrong type or not among the values of its
            `Literal`, and for values that the dataclass itself refuses.
    """
    if not isinstance(data, dict):
        raise _unexpected(data, f"an object with the fields of {cls.__name__}", path)
    if issubclass(cls, _Family) and not dataclasses.is_dataclass(cls):
        cls = _variant(cls, cls.variants(), data, path)
    data = _today(cls, data, path)
    fields = _fields(cls)
    for name in data:
        if name not in fields:
            raise UserError(f"{path}.{name}: unknown field; {suggest(str(name), list(fields))}")
    annotations = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _parse(annotations[name], data[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}.{name}: missing; {cls.__name__} has no default for it")
    try:
        return cls(**values)
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from error


@runtime_checkable
class _Family(Protocol):
    """A class that others stand in for."""

    @staticmethod
    def variants() -> Mapping[str, type]: ...


def _variant(base: type[T], table: Mapping[str, type], data: dict[str, object], path: str) -> type[T]:
    """Return the class of the table that `data` is tagged with."""
    key = next(iter(table.values())).TAG[0]
    if key not in data:
        raise UserError(f"{path}.{key}: missing; it is one of {', '.join(table)}")
    name = data[key]
    if not isinstance(name, str) or name not in table:
        raise UserError(f"{path}.{key}: {_show(name)} is not known; {suggest(str(name), list(table))}")
    cls = table[name]
    if not issubclass(cls, base):
        raise UserError(f"{path}.{key}: {_show(name)} is no {base.__name__}")
    return cls


def _today(cls: type, data: dict[str, object], path: str) -> dict[str, object]:
    """Return `data` without the tag, and with the names that fields have today."""
    data = dict(data)
    if (tag := getattr(cls, "TAG", None)) is not None and data.pop(tag[0], tag[1]) != tag[1]:
        raise UserError(f"{path}.{tag[0]}: expected {tag[1]!r}")
    for old, new in getattr(cls, "RENAMED", {}).items():
        if old in data:
            if new in data:
                raise UserError(f"{path}: both {old} and {new} are given, which are one field; leave {old} out")
            data[new] = data.pop(old)
    for name, (key, value) in getattr(cls, "UNTAGGED", {}).items():
        if isinstance(inner := data.get(name), dict):
            data[name] = {key: value} | inner
    for old, value in getattr(cls, "REMOVED", {}).items():
        if data.pop(old, value) != value:
            raise UserError(f"{path}.{old}: this version knows only {value!r}; use the version that wrote it")
    return data


def suggest(name: str, known: list[str]) -> str:
    """Return the second half of an "unknown name" message: the nearest known name, or all of them."""
    nearest = difflib.get_close_matches(name, known, n=1)
    if nearest:
        return f"did you mean '{nearest[0]}'?"
    return "known are " + ", ".join(known) if known else "none is known"


def _parse(annotation: object, value: object, path: str) -> object:
    """Return `value` as `annotation` has it; lists become tuples where the annotation is one."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise UserError(f"{path}: {_show(value)} is not one of {', '.join(map(repr, arguments))}")
    if origin in (Union, types.UnionType):
        return _parse_union(arguments, value, path)
    if origin is tuple or annotation is tuple:
        return _parse_tuple(arguments, value, path)
    if origin is list or annotation is list:
        item = arguments[0] if arguments else Any
        return [_parse(item, each, f"{path}[{index}]") for index, each in enumerate(_items(value, path))]
    if origin is dict or annotation is dict:
        if not isinstance(value, dict):
            raise _unexpected(value, "an object", path)
        item = arguments[1] if arguments else Any
        return {key: _parse(item, each, f"{path}.{key}") for key, each in value.items()}
    if isinstance(annotation, type) and (dataclasses.is_dataclass(annotation) or issubclass(annotation, _Family)):
        return from_json(annotation, value, path)
    return _parse_scalar(annotation, value, path)


def _parse_union(choices: tuple[object, ...], value: object, path: str) -> object:
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    dataclass_choices = [choice for choice in choices if isinstance(choice, type) and dataclasses.is_dataclass(choice)]
    tagged = [choice for choice in dataclass_choices if _has_tag(choice, value)]
    if tagged:
        choices = tuple(tagged)
    elif isinstance(value, dict) and dataclass_choices:
        # `to_json` writes every field, so the class that was written shares the most names with the object.
        choices = (max(dataclass_choices, key=lambda choice: len(_fields(choice).keys() & value.keys())),)
    if len(choices) == 1:
        return _parse(choices[0], value, path)
    for choice in choices:
        try:
            return _parse(choice, value, path)
        except UserError:
            continue
    names = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    raise _unexpected(value, names, path)


def _has_tag(cls: type, value: object) -> bool:
    tag = getattr(cls, "TAG", None)
    return tag is not None and isinstance(value, dict) and value.get(tag[0]) == tag[1]


def _fields(cls: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _parse_tuple(arguments: tuple[object, ...], value: object, path: str) -> tuple[object, ...]:
    items = _items(value, path)
    if not arguments:
        return tuple(items)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(items)
    if len(items) != len(arguments):
        raise _unexpected(value, f"a list of {len(arguments)}", path)
    pairs = zip(arguments, items, strict=True)
    return tuple(_parse(item, each, f"{path}[{index}]") for index, (item, each) in enumerate(pairs))


def _parse_scalar(annotation: object, value: object, path: str) -> object:
    # bool is an int to Python and an int is a float to JSON; only the second is meant.
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= MAX_NUMBER:
            raise _unexpected(value, f"a number below {MAX_NUMBER:g}", path)
        return float(value)
    if isinstance(annotation, type) and annotation in (bool, int, float, str):
        if type(value) is not annotation:
            raise _unexpected(value, f"a value of type {annotation.__name__}", path)
        return value
    if annotation is Path:
        if not isinstance(value, str):
            raise _unexpected(value, "a path", path)
        return Path(value)
    raise TypeError(f"{path}: fields of type {annotation} have no JSON form")


def _items(value: object, path: str) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise _unexpected(value, "a list", path)
    return value


def _unexpected(value: object, expected: str, path: str) -> UserError:
    return UserError(f"{path}: expected {expected}, got {_show(value)}")


def _show(value: object) -> str:
    # What a stranger's file holds may be of any size; `repr` would write all of it.
    short = _SHORT.repr(value)
    return f"{short if len(short) <= 60 else short[:57] + '...'} ({type(value).__name__})"
