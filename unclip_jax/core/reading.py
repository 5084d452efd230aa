"""Files that may come from anywhere, read within bounds.

What a file says of itself is checked before anything is done about it, and what it may not exceed is named in the
message. Here is what all formats share:

    regular files only        a device never ends, and a pipe may never begin
    MAX_JSON_BYTES            of a text in JSON, MAX_LISTS lists and objects (and brackets in strings), MAX_DEPTH of
                              them in each other, numbers of MAX_DIGITS
"""

import json
import os
import stat
from pathlib import Path

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Json

MIB = 2**20
MAX_JSON_BYTES = 4 * MIB
MAX_LISTS = 300_000
"""Vocabularies of 250,000 pairs are in use."""
MAX_DEPTH = 64
MAX_DIGITS = 40

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def check_regular(path: str | Path) -> None:
    """Raise OSError for a file that is not there, and UserError for what is no file that could be read to its end."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # NUL, or half a letter
        raise UserError(f"no file can be called {str(path)!r}; check the name") from error
    if kind := _KINDS.get(stat.S_IFMT(mode)):
        raise UserError(f"{path} is {kind} and no file; copy what it gives into a file, and name that")


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file.

    Raises:
        OSError: it cannot be read.
        UserError: it is no regular file, or has more than `limit` bytes.
    """
    check_regular(path)
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{path} has over {limit / MIB:g} MiB, the most that is read of such a file; give another")
    return data


def read_text(path: Path, limit: int = MAX_JSON_BYTES, encoding: str = "utf-8") -> str:
    """Read a text; errors as of `read_bytes`, and UnicodeDecodeError, a ValueError."""
    return read_bytes(path, limit).decode(encoding)


def check_lists(text: str) -> None:
    """Raise ValueError for a text in JSON of too many lists and objects: they take far more memory and time to make
    than bytes to write."""
    if (count := text.count("[") + text.count("{")) > MAX_LISTS:
        raise ValueError(f"it has {count:,} lists and objects, more than the limit of {MAX_LISTS:,}")


def parse_json(text: str, limit: int = MAX_JSON_BYTES) -> Json:
    """Parse JSON; ValueError for a text that is none, or that goes beyond the bounds."""
    if len(text) > limit:
        raise ValueError(f"it has over {limit / MIB:g} MiB, the most that is read")
    check_lists(text)
    try:
        data = json.loads(text, parse_int=_int, parse_float=_float, parse_constant=_float)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}") from None
    level: list[object] = [data]
    for _ in range(MAX_DEPTH):
        inside: list[object] = []
        for each in level:
            if isinstance(each, dict | list):
                inside += each.values() if isinstance(each, dict) else each
        level = inside
        if not level:
            return data
    raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"the number {text[:MAX_DIGITS]} is not finite")
    return value
