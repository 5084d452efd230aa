"""python -m unclip_jax.convert karlo FOLDER OUT       Karlo, text to image or variations, as the hub has it
python -m unclip_jax.convert hf_clip FOLDER OUT     a CLIP of Hugging Face
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from unclip_jax import command_line
from unclip_jax.bundle.parts import Bundle
from unclip_jax.bundle.store import StoredDtype, save
from unclip_jax.convert.hf_clip import import_clip
from unclip_jax.convert.karlo import LICENSE, import_karlo
from unclip_jax.convert.mapping import Account
from unclip_jax.errors import UserError, run_cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """What every import is told."""

    source: tyro.conf.Positional[Path]
    """The folder of the PyTorch model, as it was downloaded."""
    out: tyro.conf.Positional[Path]
    """Folder of the bundle to make."""
    dtype: StoredDtype = "float32"
    """What the weights are stored as."""
    name: str | None = None
    """What to call the bundle; the folder's name by default."""
    overwrite: bool = False
    """Replace a bundle that is already there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Karlo(Import):
    """Karlo or its image variations: a folder with model_index.json, one folder per component."""

    license: str = LICENSE
    """Licence of the weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HFClip(Import):
    """A CLIP of Hugging Face: both towers, or one of them with or without projection."""

    license: str = ""
    """Licence of the weights."""


Command = (
    Annotated[Karlo, tyro.conf.subcommand("karlo")] | Annotated[HFClip, tyro.conf.subcommand("hf_clip")]
)


def main() -> None:
    """Parses the command line and runs the command."""
    command: Karlo | HFClip = command_line.parse(Command, prog="python -m unclip_jax.convert", description=__doc__)
    if not command.source.is_dir():
        raise UserError(f"{command.source} is no folder; give the folder of a model as it was downloaded")
    name = command.name or command.out.resolve().name
    importer = import_karlo if isinstance(command, Karlo) else import_clip
    finish(command, *importer(command.source, name, command.license))


def finish(command: Import, bundle: Bundle, accounts: list[Account]) -> None:
    """Writes the bundle, which is when weights are read, and says what became of every tensor."""
    bundle_hash = save(bundle, command.out, dtype=command.dtype, overwrite=command.overwrite)
    for account in accounts:
        print(account)
    print(f"wrote {command.out} ({', '.join(bundle.parts)}), hash {bundle_hash}")


if __name__ == "__main__":
    run_cli(main)
