"""Reading the configs of other projects: what is expected is checked, and a surprise is named."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from unclip_jax.core.errors import UserError

T = TypeVar("T")
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


def field(config: dict[str, Any], name: str, kind: type[T], where: str) -> T:
    """Return a value; UserError where it is missing or of another type."""
    value = config.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{where}: {name} is {value!r}; expected a value of type {kind.__name__}")
    return cast(T, value)


def fields(config: dict[str, Any], names: Sequence[str], kind: type[T], where: str) -> list[T]:
    """Return `field` for several."""
    return [field(config, name, kind, where) for name in names]


def expect(config: dict[str, Any], where: str, **values: Any) -> None:
    """Refuse a config with anything else than `values`; what it leaves out has its library's default."""
    for name, value in values.items():
        if name in config and config[name] != value:
            raise UserError(f"{where}: {name} is {config[name]!r}; only {value!r} is known")
