import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from unclip_jax.core import command_line
from unclip_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A part."""

    batch_size: int = 1
    width: int = 2
    label: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Does something."""

    name: Annotated[str, tyro.conf.Positional] = "x"
    kind: str = "a"
    part: Part = Part()
    words: tuple[str, ...] = ()
    file: Path = Path("x")


def parse(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["prog", *words])
    return command_line.parse(Options, prog="prog")


def test_reads_options(monkeypatch):
    options = parse(monkeypatch, "y", "--part.batch-size", "3", "--kind=b")
    assert options == Options(name="y", kind="b", part=Part(batch_size=3))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--part.batch-sise", "3"], "no option --part.batch-sise; did you mean --part.batch-size?"),
        (["--part.batch-sise=3"], "no option --part.batch-sise; did you mean --part.batch-size?"),
        (["--batch_size", "3"], "no option --batch_size; did you mean --part.batch-size?"),
        (["--part.zzz", "3"], "no option --part.zzz"),
        (["a", "red", "circle"], "'red' belongs to no option; put words that belong together in quotes"),
        (["--part.width", "wide"], "--part.width: invalid literal for int() with base 10: 'wide'"),
        (["--part.width"], "missing value for argument '--part.width'. Expected 1 values"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, words, line):
    with pytest.raises(UserError) as raised:
        parse(monkeypatch, *words)
    assert str(raised.value) == f"{line}; see prog --help"
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


LATIN_1 = os.fsdecode("café".encode("latin-1"))


@pytest.mark.parametrize(
    "words", [[LATIN_1], ["--kind", LATIN_1], ["--words", "a", LATIN_1], ["--part.label", LATIN_1]]
)
def test_a_string_that_is_no_text_is_one_line(monkeypatch, words):
    with pytest.raises(UserError) as raised:
        parse(monkeypatch, *words)
    assert str(raised.value) == "'caf\\udce9' on the command line is not UTF-8; give it in UTF-8"


def test_a_path_may_be_any_bytes(monkeypatch):
    assert parse(monkeypatch, "--file", LATIN_1).file == Path(LATIN_1)


def test_help_is_tyros(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        parse(monkeypatch, "--help")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "usage: prog" in out and "Does something." in out and "--part.batch-size INT" in out
