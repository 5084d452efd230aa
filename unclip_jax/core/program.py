"""How the running command is called, and how the others are.

`train/` and `sample/` are packages of their own in a checkout, and `unclip_jax.train` and `unclip_jax.sample` where a
wheel is installed. Sources and documents write commands as a checkout has them, `python -m sample.decode`; what a
command says of itself and of others is put through `as_typed`.
"""

import re
import sys
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_COMMAND = re.compile(r"python -m (?:(train|sample)\.(\w+)|unclip_jax\.(convert|bundle)\b)")


def home(folder: str) -> str:
    """The package that the commands of `folder`, train or sample, are in."""
    return f"{_PACKAGE.name}.{folder}" if (_PACKAGE / folder).is_dir() else folder


def program() -> str:
    """The running command without its options, as it was typed: "python -m sample.decode", "unclip-sample decode"."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is None or sys.argv[0] != getattr(main, "__file__", None):
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def as_typed(text: str) -> str:
    """`text` with the commands in it as they are typed here."""
    by_script = program().startswith("unclip-")

    def typed(found: re.Match[str]) -> str:
        folder, name, tool = found.groups()
        if by_script:
            return f"unclip-{tool}" if tool else f"unclip-{folder} {name}"
        return found[0] if tool else f"python -m {home(folder)}.{name}"

    return _COMMAND.sub(typed, text)
