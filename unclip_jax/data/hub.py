"""Datasets of the Hugging Face Hub, or of their library in a local folder: "hf:owner/name", "hf:owner/name/config".

The library keeps them as Arrow files, which are read at random. Images are taken undecoded.
"""

import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.data.columns import Rows
from unclip_jax.data.skipping import BadRecordError

Dataset = Any
"""A `datasets.Dataset`."""


class HubRows(Rows):
    """A split of a dataset.

    Args:
        name: owner/name, owner/name/config, or a folder: one that `save_to_disk` wrote, or of files that the library
            reads.

    Raises UserError for a dataset or a split that cannot be had.
    """

    def __init__(self, name: str, split: str):
        with needs("hf"):
            import datasets
        self.where, self._split = f"hf:{name}", split
        try:
            found = _load(datasets, os.path.expanduser(name), split)
        except Exception as error:  # of the library, its network and its files
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{self.where} cannot be had ({why}); check its name, its split and the network") from error
        for column, feature in found.features.items():
            if isinstance(feature, datasets.Image):
                found = found.cast_column(column, datasets.Image(decode=False))
        self._table = found
        self._tables: dict[tuple[str, ...], Dataset] = {}
        self._columns = list(found.column_names)

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""
        return self._columns

    def __len__(self) -> int:
        return len(self._table)

    def cells(self, index: int, names: Sequence[str]) -> Mapping[str, object]:
        try:
            row = self._of(tuple(names))[index]
        except Exception as error:
            raise BadRecordError(f"cannot be read ({' '.join(str(error).split())[:100]})") from error
        return {name: _with_bytes(cell) for name, cell in row.items()}

    def _of(self, names: tuple[str, ...]) -> Dataset:
        """Return the table of some columns; to select them takes longer than to read a row."""
        if names not in self._tables:
            self._tables[names] = self._table.select_columns([name for name in names if name in self._columns])
        return self._tables[names]

    def place(self, index: int) -> str:
        return f"{self._split}, row {index}"


def _load(datasets: ModuleType, name: str, split: str) -> Dataset:
    """Load a split: of a folder of the library's own, of a folder of files, or of the Hub."""
    if os.path.isdir(name) and any(
        os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json")
    ):
        found = datasets.load_from_disk(name)
        if isinstance(found, dict):
            if split not in found:
                raise ValueError(f"it has no split {split!r}, only {', '.join(found)}")
            return found[split]
        if split != "train":
            raise ValueError(f"it has no split {split!r}")
        return found
    owner, _, rest = name.partition("/")
    dataset, _, config = rest.partition("/")
    if os.path.isdir(name) or not config:
        return datasets.load_dataset(name, split=split)
    return datasets.load_dataset(f"{owner}/{dataset}", config, split=split)


def _with_bytes(cell: object) -> object:
    """Return an undecoded image with its bytes, which the library may have left in a file."""
    if isinstance(cell, Mapping) and cell.get("bytes") is None and isinstance(path := cell.get("path"), str):
        try:
            with open(path, "rb") as file:
                return {"bytes": file.read()}
        except OSError as error:
            raise BadRecordError(f"{path} cannot be read ({error.strerror})") from error
    return cell
