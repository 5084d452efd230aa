"""Indices of large files, kept in the user's cache folder under the files' sizes and times."""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.core.files import atomic_write, cache_folder
from unclip_jax.data.files import stamp


class Index(NamedTuple):
    """What is kept: rows of numbers, what is no record by its place with the reason, and more bytes by name."""

    rows: np.ndarray
    faults: dict[str, str]
    texts: dict[str, bytes]


def index_file(kind: str, version: object, files: Sequence[str], cache_dir: str | Path | None) -> Path:
    """Return where the index of these files, as they are now, is kept.

    Raises OSError for a file that cannot be looked at.
    """
    known = repr([kind, version, [(file, *stamp(file)) for file in files]])
    digest = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return (cache_folder() if cache_dir is None else Path(cache_dir)) / f"{kind}-{digest}.npz"


def save_index(
    file: Path, rows: np.ndarray, faults: dict[str, str], texts: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Keep an index: rows of numbers, what is no record by its place with the reason, and more bytes by name."""
    lines = "\n".join(f"{place}\t{why}" for place, why in faults.items()).encode("utf-8", "surrogateescape")
    arrays: dict[str, Any] = {name: np.frombuffer(data, np.uint8) for name, data in {"faults": lines, **texts}.items()}
    try:
        with atomic_write(file) as draft, open(draft, "wb") as out:
            np.savez(out, rows=rows, **arrays)
    except OSError:
        return  # a read-only home costs the next start another reading, no more


def load_index(file: Path, dtype: np.dtype, texts: Sequence[str] = ()) -> Index | None:
    """Return what is kept; None where there is nothing, or it cannot be used."""
    try:
        with open(file, "rb") as source, np.load(source, allow_pickle=False) as kept:
            rows, faults = kept["rows"], kept["faults"].tobytes().decode("utf-8", "surrogateescape")
            found = {name: kept[name].tobytes() for name in texts}
        if rows.dtype != dtype or rows.ndim != 1:
            return None
        return Index(rows, dict(line.split("\t", 1) for line in faults.split("\n")) if faults else {}, found)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
