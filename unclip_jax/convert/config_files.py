"""Reading the configs of other projects: what is expected is checked, and a surprise is named."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from unclip_jax.core.errors import UserError

T = TypeVar("T")


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
