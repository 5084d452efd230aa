"""Reading the configs of other projects: what is expected is checked, and a surprise is named."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from unclip_jax.core.errors import UserError

T = TypeVar("T")
Config = Mapping[str, object]
MAX_NUMBER = 2**20
MIN_NUMBER: dict[type, int] = {int: 1, float: 0}
"""Bounds of sizes, and of ratios and limits."""
_README_BYTES = 2**16
_LICENSE = re.compile(r"^license:[ \t]*[\"']?([^\"'\s#][^\"'\n#]*)", re.MULTILINE)


def stated_license(folder: Path) -> str:
    """Return the licence that the front matter of a model's README.md states, as the hub has them; "" for none."""
    path = folder / "README.md"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        text = file.read(_README_BYTES).decode(errors="replace")
    head, _, _ = text.removeprefix("---").partition("\n---")
    found = _LICENSE.search(head) if text.startswith("---") else None
    return found[1].strip() if found else ""


def field(config: Config, name: str, kind: type[T], where: str, default: T | None = None) -> T:
    """Return a value; UserError where it is missing, without a default, or of another type."""
    value = config.get(name, default)
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or type(value) is not kind:
        raise UserError(f"{where}: {name} is {value!r}; expected a value of type {kind.__name__}")
    if isinstance(value, int | float) and not isinstance(value, bool) and not MIN_NUMBER[kind] <= value <= MAX_NUMBER:
        raise UserError(f"{where}: {name} is {value!r}; expected {MIN_NUMBER[kind]} to {MAX_NUMBER}")
    return value


def fields(config: Config, names: Sequence[str], kind: type[T], where: str) -> list[T]:
    """Return `field` for several."""
    return [field(config, name, kind, where) for name in names]


def per_channel(config: Config, name: str, where: str) -> tuple[float, float, float]:
    """Return three numbers; UserError where there are none."""
    match config.get(name):
        case [int() | float() as red, int() | float() as green, int() | float() as blue]:
            return float(red), float(green), float(blue)
    raise UserError(f"{where}: {name} is {config.get(name)!r}; it must hold three numbers")


def only(config: Config, where: str, read: Sequence[str], values: Config) -> None:
    """Refuse a config with other fields than `read`, which are shell patterns, and `values`, or with other values."""
    expect(config, where, **values)
    for name in config:
        if name not in values and not any(fnmatch.fnmatchcase(name, pattern) for pattern in read):
            raise UserError(
                f"{where}: {name} is {config[name]!r}, a field that is not known here, so it is not imported"
            )


def expect(config: Config, where: str, **values: object) -> None:
    """Refuse a config with anything else than `values`; what it leaves out has its library's default."""
    for name, value in values.items():
        if name in config and config[name] != value:
            raise UserError(f"{where}: {name} is {config[name]!r}; only {value!r} is known")
