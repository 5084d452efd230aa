"""Reading a command line with tyro: its help as it is, its boxes of errors as one line."""

import contextlib
import dataclasses
import difflib
import io
import re
import sys
from collections.abc import Iterator
from typing import Any, TypeVar, overload

import tyro

from unclip_jax.core.errors import UserError
from unclip_jax.core.program import as_typed, program
from unclip_jax.core.typing import DataclassInstance
from unclip_jax.core.unicode import fault

T = TypeVar("T")

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@overload
def parse(form: type[T], *, prog: str | None = None, description: str | None = None) -> T: ...


@overload
def parse(form: object, *, prog: str | None = None, description: str | None = None) -> Any: ...


def parse(form: Any, *, prog: str | None = None, description: str | None = None) -> object:
    """Parse `sys.argv` as `tyro.cli(form)` does: a dataclass, or one of several as subcommands.

    A union inside a dataclass makes no subcommands.

    Args:
        form: the dataclass, or what tyro takes for several.
        prog: what help calls the command; by default as it was typed.
        description: what it does. Commands in it are told as they are typed here.

    Raises:
        UserError: for an unknown option, with the nearest known one, for whatever tyro refuses, and for a string that
            is not text (paths may be any bytes).
    """
    boxes = io.StringIO()
    prog = program() if prog is None else prog
    try:
        with contextlib.redirect_stderr(boxes):
            value, unknown = tyro.cli(
                form,
                prog=prog,
                description=None if description is None else as_typed(description),
                config=(tyro.conf.AvoidSubcommands,),
                return_unknown_args=True,
            )
    except SystemExit as end:
        if end.code != 2:
            sys.stderr.write(boxes.getvalue())
            raise
        raise UserError(f"{_first_section(boxes.getvalue())}; see {prog} --help") from None
    if unknown:
        raise UserError(f"{_misunderstood(unknown, list(_options(value)))}; see {prog} --help")
    for given in _strings(value):
        if (why := fault(given)) is not None:
            raise UserError(f"{given!r} on the command line {why}; give it in UTF-8")
    return value


def _first_section(box: str) -> str:
    """Return the text of a box of tyro's up to the first line across, without the title; without UTF-8 only lines
    across."""
    words = []
    for line in _ANSI.sub("", box).splitlines()[1:]:
        text = line.strip(" │")
        if text.strip("─-╰╯"):
            words += text.split()
        elif words:
            break
    # tyro calls the recipe of a subcommand by this name.
    line = " ".join(words).rstrip(".").removeprefix("Error parsing ").removeprefix("__tyro-dummy-inner__.")
    return line[:1].lower() + line[1:]


def _misunderstood(unknown: list[str], options: list[str]) -> str:
    """Return the message for `unknown`: what no option took, the values of unknown options among it."""
    name = next((word for word in unknown if word.startswith("-")), None)
    if name is None:
        return f"{unknown[0]!r} belongs to no option; put words that belong together in quotes"
    name = name.partition("=")[0]
    last = name.lstrip("-").replace("_", "-").split(".")[-1]
    near = [option for option in options if option.lstrip("-").split(".")[-1] == last]
    # A long common prefix, as in --model.x and --model.y, is no likeness.
    near += difflib.get_close_matches(name.replace("_", "-"), options, n=1, cutoff=0.8)
    return f"no option {name}" + (f"; did you mean {near[0]}?" if near else "")


def _strings(value: object) -> Iterator[str]:
    """Yield the strings in a dataclass, in order."""
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _strings(item)


def _options(value: DataclassInstance, prefix: str = "--") -> Iterator[str]:
    """Return the options that fill a dataclass, as they are typed."""
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            yield from _options(inner, f"{name}.")
        elif isinstance(inner, dict) and all(map(dataclasses.is_dataclass, inner.values())):
            # Groups by name, without one of their own.
            for group, options in inner.items():
                yield from _options(options, f"{prefix}{group.replace('_', '-')}.")
        else:
            yield name
