"""Provenance of pictures, from which a command samples them once more.

The text of every PNG has, besides what a person wants to read, the key `again`:

    {"command": "variations", "options": {...}, "inputs": {path: sha256}}
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.reading import check_regular, parse_json
from unclip_jax.core.typing import DataclassInstance, JsonDict
from unclip_jax.images.png import read_text
from unclip_jax.systems.system import Settings, System

PROVENANCE_KEY = "again"
MAX_INPUT_BYTES = 4 * 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What stands under `PROVENANCE_KEY`: a command by its name, its options, and the sha256 of the files it reads."""

    RENAMED: ClassVar = {"module": "command"}

    command: str
    options: dict[str, Any]
    inputs: dict[str, str]

    @classmethod
    def of(cls, command: str, options: DataclassInstance, inputs: Sequence[Path]) -> "Provenance":
        """Record a command about to run, before any work: what is read may change meanwhile.

        Raises UserError for a file that cannot be read.
        """
        return cls(command=command, options=to_json(options), inputs=hashes(inputs))

    @classmethod
    def read(cls, image: Path) -> tuple["Provenance", dict[str, str]]:
        """Read that of a PNG, and all of its text; UserError where it has none."""
        text = read_text(image)
        if PROVENANCE_KEY not in text:
            raise UserError(f"{image} does not say how it was drawn; give a .png of one of the sample commands")
        where = f"{image}: {PROVENANCE_KEY}"
        try:
            found = from_json(cls, parse_json(text[PROVENANCE_KEY]), where)
        except ValueError as error:
            raise UserError(f"{where} is no JSON ({error}); give a .png as it was written") from error
        # Versions before 0.2 wrote the module's name, and settings in groups of their own.
        command = found.command.removeprefix("sample.")
        return dataclasses.replace(found, command=command, options=_with_settings(found.options)), text

    def text(self, system: System, settings: Settings, only: int | None = None) -> dict[str, str]:
        """Return the text of a sheet, or of the one image `only` of the request; `settings` are those of its stages."""
        options = self.options if only is None else self.options | {"only": only}
        return {
            "software": "unclip_jax",
            "bundle": system.name,
            "bundle_hash": system.hash,
            **{name: str(options[name]) for name in ("seed", "stop_at") if name in options},
            "settings": json.dumps({name: to_json(own) for name, own in settings.items()}),
            PROVENANCE_KEY: json.dumps(to_json(dataclasses.replace(self, options=options)), ensure_ascii=False),
        }

    def check_same(self, image: Path, inputs: Sequence[Path], bundle: System, bundle_hash: str | None) -> None:
        """Raise UserError, naming what changed, unless bundle and inputs are those that `image` was sampled from."""
        found = hashes(inputs)
        changed = sorted(name for name in found.keys() | self.inputs.keys() if found.get(name) != self.inputs.get(name))
        if changed:
            raise UserError(f"{changed[0]} is not as it was when {image} was drawn; put that file back")
        if bundle.hash != bundle_hash:
            raise UserError(f"bundle {bundle.name} is not the one that {image} was drawn with; put that one back")


def hashes(files: Sequence[Path]) -> dict[str, str]:
    """Return the sha256 of files, by their names; UserError for one that cannot be read."""
    found = {}
    for file in files:
        try:
            check_regular(file)
            if file.stat().st_size > MAX_INPUT_BYTES:
                raise UserError(
                    f"{file} has over {MAX_INPUT_BYTES:,} bytes, the most that is read; give a smaller file"
                )
            with file.open("rb") as stream:
                found[str(file)] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}); check the name") from error
    return found


def _with_settings(options: JsonDict) -> JsonDict:
    """Move settings of stages to `settings`, where older versions had a group for each kind of stage, or the decoder's
    own among the options."""
    if "settings" in options:
        return dict(options)
    options = dict(options)
    found = {name: options.pop(name) for name in ("prior", "decoder", "upsamplers") if name in options}
    groups = {name: own if isinstance(own, dict) else {} for name, own in found.items()}
    given = {name: options.pop(name) for name in ("steps", "guidance_scale", "eta") if name in options}
    groups["decoder"] = groups.get("decoder", {}) | given
    settings: JsonDict = {
        name: {key: value for key, value in own.items() if value is not None} for name, own in groups.items()
    }
    return {**options, "settings": {name: own for name, own in settings.items() if own}}
