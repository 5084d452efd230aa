"""Adapters as commands name them: [PART=]FILE[:STRENGTH], such as a.safetensors:0.7 or decoder=kohya.safetensors.

FILE is a file, a folder of PEFT's or diffusers', or the name of an adapter that the bundle itself carries.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

from unclip_jax.bundle.store import ADAPTERS
from unclip_jax.convert.adapter_files import files_of, read_adapter
from unclip_jax.convert.adapters import fit
from unclip_jax.core.errors import UserError
from unclip_jax.systems.adapting import Adapter, adapt
from unclip_jax.systems.system import System

MAX_ADAPTERS = 32
"""Of a request."""


@dataclasses.dataclass(frozen=True)
class Use:
    """One adapter of a request."""

    path: Path
    carried: bool
    strength: float
    part: str

    @classmethod
    def parse(cls, text: str, folder: Path) -> "Use":
        """Read what a command says; `folder` is the bundle's. UserError for a strength that is none."""
        name, strength, part = text, 1.0, ""
        head, colon, tail = text.rpartition(":")
        if colon and not Path(text).exists():
            try:
                name, strength = head, float(tail)
            except ValueError as error:
                raise UserError(
                    f"--adapters has {text[:200]!r}; give FILE:STRENGTH, such as a.safetensors:0.7"
                ) from error
        head, equals, tail = name.partition("=")
        if equals and not Path(name).exists() and re.fullmatch(r"\w+(\.\w+)?", head):
            part, name = head, tail
        if not name or not math.isfinite(strength):
            raise UserError(f"--adapters has {text[:200]!r}; give FILE:STRENGTH, such as a.safetensors:0.7")
        # A name alone is one that the bundle carries, where it carries one.
        inside = folder / ADAPTERS / f"{name}.safetensors"
        carried = Path(name).name == name and inside.is_file()
        return cls(inside if carried else Path(name), carried, strength, part)


def uses(texts: Sequence[str], folder: Path) -> list[Use]:
    """Read all of a request; UserError as `Use.parse`, and for very many."""
    if len(texts) > MAX_ADAPTERS:
        raise UserError(f"--adapters names {len(texts)}; give at most {MAX_ADAPTERS}")
    return [Use.parse(text, folder) for text in texts]


def input_files(texts: Sequence[str], folder: Path) -> list[Path]:
    """Return the files that are read besides the bundle's."""
    return [file for use in uses(texts, folder) if not use.carried for file in files_of(use.path)]


def open_adapters(texts: Sequence[str], folder: Path, system: System) -> list[tuple[Adapter, float]]:
    """Read adapters and find out what they adapt; UserError as `read_adapter` and `fit`."""
    found = []
    for use in uses(texts, folder):
        found += [(adapter, use.strength) for adapter in fit(read_adapter(use.path), system, use.part)]
    return found


def adapted(system: System, texts: Sequence[str], folder: Path) -> System:
    """Return a system with adapters merged into the weights that were read."""
    return adapt(system, open_adapters(texts, folder, system)) if texts else system
