"""JSON, and the captions of a folder."""

import json
import math
from collections.abc import Iterator
from typing import Any

from tests.hostile import BOMB, HUGE
from tests.hostile.archives import Files


def json_cases() -> Iterator[tuple[str, bytes]]:
    """Texts in the place of a config.json."""
    yield "deep", b"[" * 100_000
    yield "deep and closed", b"[" * 900 + b"]" * 900
    yield "deep objects", b'{"a":' * 900 + b"1" + b"}" * 900
    yield "deep in a field", b'{"format": 2, "name": ' + b"[" * 900 + b"]" * 900 + b"}"
    yield "deep format", b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}"
    yield "number of a million digits", b'{"format": ' + b"9" * 1_000_000 + b"}"
    yield "number of 4000 digits", b'{"format": ' + b"9" * 4000 + b"}"
    yield "not a number", b'{"format": NaN}'
    yield "infinite", b'{"format": 1e999}'
    yield "half letters", b'{"format": "\\ud800"}'
    yield "not UTF-8", b'{"format": "\xff"}'
    yield "NUL", b"\0" * 100
    yield "a list", b"[]"
    yield "a number", b"5"
    yield "nothing", b""
    yield "endless lists", b"[" + b"[]," * (BOMB // 3) + b"[]]"
    yield "4 MB of lists", b"[" + b"[]," * 1_300_000 + b"[]]"
    yield "endless text", b'{"format": "' + b"x" * BOMB + b'"}'
    yield "100,000 fields", json.dumps({"format": 2, **{f"f{i}": i for i in range(100_000)}}).encode()
    yield "the same field 200,000 times", b"{" + b'"format": 2, ' * 200_000 + b'"format": 2}'


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 7, 10**6, 10**9, HUGE, 2**63, 10**30, 10**400, 1.5, -1.5, 1e308, math.nan, math.inf,
    "", "x", "\ud800", "x" * 100_000, [], [1], [[]], [-1], [0, 0], [10**12] * 3, list(range(2000)), {}, {"a": 1},
    {"network": "unet"},
)  # fmt: skip
"""What is put in the place of a value."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """JSON with another value at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def without(value: Any, path: tuple[Any, ...]) -> Any:
    """JSON that lacks the value at a path."""
    copy = value.copy()
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = without(value[path[0]], path[1:])
    return copy


def folder_cases() -> Iterator[tuple[str, Files]]:
    """What stands in a folder beside a.png."""
    row = b'{"file_name": "a.png", "text": "a red circle"}\n'
    for name, text in {
        "deep": b"[" * 100_000 + b"\n",
        "deep row": b'{"file_name": "a.png", "text": "x", "more": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        "deep text": b'{"file_name": "a.png", "text": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        "number of a million digits": b'{"file_name": "a.png", "text": "x", "size": ' + b"9" * 1_000_000 + b"}\n",
        "not a number": b'{"file_name": "a.png", "text": NaN}\n',
        "text without an end": b'{"file_name": "a.png", "text": "' + b"x" * BOMB + b'"}\n',
        "a line without an end": b"x" * BOMB,
        "row of a million lists": b'{"file_name": "a.png", "text": "x", "more": [' + b"[]," * 1_000_000 + b"[]]}\n",
        "a million rows of lists": b"[]\n" * 200_000,
        "name that leads out": b'{"file_name": "../../../../etc/passwd", "text": "x"}\n',
        "name with NUL": b'{"file_name": "a\\u0000.png", "text": "x"}\n',
        "half letters": b'{"file_name": "\\ud800.png", "text": "\\ud800"}\n',
        "not UTF-8": b"\xff\xfe\n",
        "a list": b"[]\n",
        "a null": b"null\n",
        "null text": b'{"file_name": "a.png", "text": null}\n',
    }.items():
        yield f"jsonl: {name}", {"metadata.jsonl": row + text}
    head = b"file_name,text\na.png,a red circle\n"
    for name, text in {
        "field of 1 MB": b"a.png," + b"x" * 1_000_000 + b"\n",
        "quote without an end": b'a.png,"' + b"x,\n" * 10_000,
        "a line without an end": b"x" * BOMB,
        "a million columns": b"a.png," * 100_000 + b"\n",
        "NUL": b"a.png,\0\n",
        "not UTF-8": b"a.png,\xff\n",
        "header alone": b"",
    }.items():
        yield f"csv: {name}", {"metadata.csv": head + text}
    yield "csv: nothing", {"metadata.csv": b""}
    yield "caption without an end", {"a.txt": b"x" * BOMB}
    yield "caption that is not UTF-8", {"a.txt": b"\xff"}
    yield "caption of nothing", {"a.txt": b""}
