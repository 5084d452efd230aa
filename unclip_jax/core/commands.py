"""The commands of a folder by name: `python -m sample COMMAND`, or `unclip-sample COMMAND` where it is installed.

A command is a module that can be run, with a function `main`. Which there are is read from their sources, so that a
list of them, or a mistake in a name, waits for no import of JAX.
"""

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

from unclip_jax.core.config import suggest
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.program import home, program


def train() -> None:
    """The console script `unclip-train`."""
    main(home("train"))


def sample() -> None:
    """The console script `unclip-sample`."""
    main(home("sample"))


def convert() -> None:
    """The console script `unclip-convert`."""
    run_cli(lambda: importlib.import_module("unclip_jax.convert.__main__").main())


def bundle() -> None:
    """The console script `unclip-bundle`."""
    run_cli(lambda: importlib.import_module("unclip_jax.bundle.__main__").main())


def main(package: str) -> None:
    """Runs the command of `package` that the first word names; the words after it are its options."""
    run_cli(lambda: _run(package, sys.argv[1] if len(sys.argv) > 1 else ""))


def _run(package: str, word: str) -> None:
    folder = _folder(package)
    commands = commands_of(folder)
    if word in ("-h", "--help"):
        print(listing(_first_line(folder / "__init__.py"), commands))
        return
    if not word or word.startswith("-"):
        raise UserError(f"no command given; name one first, then its options: {', '.join(commands)}")
    name = word.replace("-", "_")
    if name not in commands:
        raise UserError(f"no command {word!r}; {suggest(name, list(commands))}")
    sys.argv = [f"{program()} {name}", *sys.argv[2:]]
    importlib.import_module(f"{package}.{name}").main()


def commands_of(folder: Path) -> dict[str, str]:
    """The modules in `folder` that can be run, each with the first line of its docstring."""
    files = [file for file in sorted(folder.glob("*.py")) if not file.name.startswith("_")]
    return {file.stem: _first_line(file) for file in files if _can_be_run(file)}


def listing(about: str, commands: dict[str, str]) -> str:
    """What `--help` prints: every command with its line."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {line}" for name, line in commands.items()]
    head = f"usage: {program()} COMMAND [OPTIONS]\n\n{about}\n"
    return "\n".join([head, *lines, f"\n{program()} COMMAND --help lists the options of one."])


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the commands of {package} are not installed; install unclip_jax again")
    return Path(spec.submodule_search_locations[0])


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _can_be_run(file: Path) -> bool:
    """Whether the module ends in `if __name__ == "__main__":`."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in body)
