"""Commands by name, and what they call themselves."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from unclip_jax.core import commands, program

ROOT = Path(__file__).parent.parent.parent
SOURCE = '''"""Says what it was told.

More of it.
"""

import sys

from unclip_jax.core.program import program


def main():
    print(program(), sys.argv[1:])


if __name__ == "__main__":
    main()
'''


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs `unclip-x WORDS` over a package of one command and one module that is none."""
    folder = tmp_path / "says"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Commands that say things."""')
    (folder / "what_for.py").write_text(SOURCE)
    (folder / "shared.py").write_text('"""Shared."""\n\n\ndef main(): ...\n')
    monkeypatch.syspath_prepend(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/unclip-x", *words])
        status = 0
        try:
            commands.main("says")
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    yield call
    for name in ("says", "says.what_for"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["what_for", "what-for"])
def test_a_command_gets_the_words_after_its_name(run, name):
    assert run(name, "a b", "--help") == (0, "unclip-x what_for ['a b', '--help']\n", "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no command given; name one first, then its options: what_for"),
        (["--seed", "3"], "no command given; name one first, then its options: what_for"),
        (["what_four"], "no command 'what_four'; did you mean 'what_for'?"),
        (["shared"], "no command 'shared'; known are what_for"),
        (["os"], "no command 'os'; known are what_for"),
        (["../what_for"], "no command '../what_for'; did you mean 'what_for'?"),
    ],
)
def test_a_mistake_is_one_line(run, words, line):
    assert run(*words) == (2, "", f"error: {line}\n")


def test_help_lists_the_commands(run):
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "usage: unclip-x COMMAND [OPTIONS]",
        "",
        "Commands that say things.",
        "",
        "  what_for  Says what it was told.",
        "",
        "unclip-x COMMAND --help lists the options of one.",
    ]


@pytest.mark.parametrize(
    ("folder", "names"),
    [("train", {"clip", "decoder", "plan", "prior", "upsampler"}), ("sample", {"again", "embed", "text_to_image"})],
)
def test_the_commands_of_this_repository(folder, names):
    found = commands.commands_of(ROOT / folder)
    assert names <= found.keys() and not {"cli", "common", "output", "points"} & found.keys()
    assert all(line.endswith((".", ":")) for line in found.values()), found
    for name in found:
        assert "\ndef main() -> None:\n" in (ROOT / folder / f"{name}.py").read_text()


@pytest.mark.parametrize("folder", ["train", "sample"])
def test_help_waits_for_no_import(folder):
    code = f"import sys; from unclip_jax.core import commands; commands.{folder}(); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") > 5


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "sample", "text2image"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no command 'text2image'; did you mean 'text_to_image'?\n"


def test_a_program_by_its_module(monkeypatch):
    main = types.SimpleNamespace(__spec__=types.SimpleNamespace(name="sample.__main__"), __file__="/x/__main__.py")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["/x/__main__.py", "a"])
    assert program.program() == "python -m sample"
    monkeypatch.setattr(sys, "argv", [os.path.join("bin", "unclip-sample"), "a"])
    assert program.program() == "unclip-sample"


TEXT = "python -m train.clip x; python -m sample.decode; python -m unclip_jax.bundle info; python -m unclip_jax.eval.x"


@pytest.mark.parametrize(
    ("typed", "installed", "line"),
    [
        ("decode", False, TEXT),
        (
            "decode",
            True,
            TEXT.replace("train.clip", "unclip_jax.train.clip").replace("sample.decode", "unclip_jax.sample.decode"),
        ),
        (
            "unclip-sample decode",
            True,
            "unclip-train clip x; unclip-sample decode; unclip-bundle info; python -m unclip_jax.eval.x",
        ),
    ],
)
def test_commands_are_told_as_they_are_typed(monkeypatch, tmp_path, typed, installed, line):
    if installed:
        for folder in ("train", "sample"):
            (tmp_path / "unclip_jax" / folder).mkdir(parents=True)
        monkeypatch.setattr(program, "_PACKAGE", tmp_path / "unclip_jax")
    monkeypatch.setattr(sys, "argv", [typed])
    assert program.as_typed(TEXT) == line
