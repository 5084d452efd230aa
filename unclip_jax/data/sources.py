"""Opening a source of records by one name.

    captioned_shapes                          made on first use
    photos/                                   a folder of images, or of files of one of the formats below
    shards/{000..099}.tar                     WebDataset and img2dataset
    data/*.parquet                            img2dataset and the Hub
    a.tfrecord-00000-of-00010, b.array_record of tf.train.Example
    tfds:coco_captions/2014:1.1.0             prepared by TensorFlow Datasets
    hf:owner/name, hf:folder                  the datasets library

What comes of any of them is the same: records at random, in a fixed order, with keys, what is bad counted and named.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from unclip_jax.core.errors import UserError
from unclip_jax.core.unicode import printable
from unclip_jax.data.array_records import ArrayRecords
from unclip_jax.data.columns import Columns, Rows, RowSource
from unclip_jax.data.filters import DescribedSource
from unclip_jax.data.folder import FolderSource
from unclip_jax.data.hub import HubRows
from unclip_jax.data.parquet import ParquetRows
from unclip_jax.data.patterns import files_of
from unclip_jax.data.shapes_source import ShapesSource
from unclip_jax.data.tables import TABLES
from unclip_jax.data.tars import TarSource
from unclip_jax.data.tfds_rows import TFDSRows
from unclip_jax.data.tfrecords import open_tfrecords
from unclip_jax.images.files import IMAGE_SUFFIXES

HELD_OUT = ("val", "valid", "validation", "dev")
"""Names of folders that are not meant for training."""
KNOWN = "captioned_shapes, a folder of images, files as in shards/{000..099}.tar, tfds:NAME or hf:NAME"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taking:
    """What is taken of a source: see `RowSource`, `FolderSource` and `TarSource`."""

    max_bad_share: float = 0.01
    min_side: int = 8
    captions: bool = True

    def rows(self, rows: Rows, columns: Columns, bad: Mapping[str, str] | None = None) -> RowSource:
        """Return the records of rows."""
        return RowSource(rows, columns, bad=bad, **dataclasses.asdict(self))


def _tars(files: Sequence[str], columns: Columns, taking: Taking) -> DescribedSource:
    return TarSource(files, **dataclasses.asdict(taking))


def _parquet(files: Sequence[str], columns: Columns, taking: Taking) -> DescribedSource:
    return taking.rows(ParquetRows(files, columns, captions=taking.captions), columns)


def _tfrecords(files: Sequence[str], columns: Columns, taking: Taking) -> DescribedSource:
    rows = open_tfrecords(files)
    return taking.rows(rows, columns, rows.faults)


def _array_records(files: Sequence[str], columns: Columns, taking: Taking) -> DescribedSource:
    return taking.rows(ArrayRecords(files), columns)


FORMATS: dict[str, tuple[re.Pattern[str], Callable[[Sequence[str], Columns, Taking], DescribedSource]]] = {
    "tar": (re.compile(r"\.tar$"), _tars),
    "parquet": (re.compile(r"\.parquet$"), _parquet),
    "tfrecord": (re.compile(r"\.tfrecords?(-[^/]*)?$"), _tfrecords),
    "array_record": (re.compile(r"\.array_?record(-[^/]*)?$"), _array_records),
}
"""Formats of files by name: how a file is called, and what opens several."""


def open_source(
    name: str | Path,
    split: str,
    data_dir: str | Path,
    *,
    resolution: int = 128,
    num_train: int = 60_000,
    num_test: int = 1_024,
    columns: Columns = Columns(),  # noqa: B008
    max_bad_share: float = 0.01,
    min_side: int = 8,
    captions: bool = True,
) -> DescribedSource:
    """Open a source by name.

    Args:
        name: see above. A folder with subfolders `train` and `test` has these splits; one without is all "train".
            What is not read of it is said.
        split: "train" or "test" of a folder; that of a dataset with a name.
        data_dir: where datasets with a name are kept.
        resolution, num_train, num_test: of captioned_shapes, see `ShapesSource`.
        columns: of what has columns.
        max_bad_share, min_side, captions: see `FolderSource`.

    Raises UserError for a name or a split that does not exist.
    """
    name = str(name)
    taking = Taking(max_bad_share=max_bad_share, min_side=min_side, captions=captions)
    if name == "captioned_shapes":
        return ShapesSource(data_dir, split, resolution=resolution, num_train=num_train, num_test=num_test)
    if name.startswith("tfds:"):
        return taking.rows(TFDSRows(name.removeprefix("tfds:"), split, data_dir), columns)
    if name.startswith("hf:"):
        return taking.rows(HubRows(name.removeprefix("hf:"), split), columns)
    for kind, (pattern, opened) in FORMATS.items():
        if pattern.search(name) and not os.path.isdir(os.path.expanduser(name)):
            if split != "train":
                raise UserError(f"{kind} files have no split {split!r}; name the files of it as the source")
            return opened(files_of(name, kind), columns, taking)
    folder = Path(os.path.expanduser(name))
    if not name or not os.path.isdir(folder):
        raise UserError(f"no dataset {name!r}; give {KNOWN}")
    folder, files = _files_of_split(folder, split)
    if not files:
        return FolderSource(folder, **dataclasses.asdict(taking))
    ((kind, found),) = files.items()
    if any(each.name.lower().endswith(IMAGE_SUFFIXES) for each in folder.iterdir()):
        print(f"{folder}: its {kind} files are read, not the images beside them", file=sys.stderr)
    return FORMATS[kind][1](found, columns, taking)


def _files_of_split(folder: Path, split: str) -> tuple[Path, dict[str, list[str]]]:
    """Return the folder of a split, and the files of the one format in it, if there are any.

    Raises UserError for a split that is not there, and files of several formats.
    """
    splits = [name for name in ("train", "test") if (folder / name).is_dir()]
    if splits:
        if split not in splits:
            raise UserError(f"{folder} has no split {split!r}; put its images into the folder {folder / split}")
        if unread := _unread(folder, split):
            print(f"{folder}: {split}/ alone is read, not {', '.join(unread)}", file=sys.stderr)
        folder /= split
    files = {kind: _of_format(folder, pattern) for kind, (pattern, _) in FORMATS.items()}
    files = {kind: found for kind, found in files.items() if found}
    if len(files) > 1:
        raise UserError(f"{folder} has files of several formats: {', '.join(files)}; name those to read")
    if not splits:
        # The Hub's names begin with the split.
        named = {k: [f for f in found if os.path.basename(f).startswith(f"{split}-")] for k, found in files.items()}
        if any(named.values()):
            (kind,) = named
            if others := len(files[kind]) - len(named[kind]):
                print(f"{folder}: {split}-* alone is read, not {others:,} other files", file=sys.stderr)
            return folder, named
        if split != "train":
            raise UserError(f"{folder} has no split {split!r}; put its images into the folder {folder / split}")
        if others := [f"{name}/" for name in HELD_OUT if (folder / name).is_dir()]:
            print(f"{folder} has no train/, so all of it is read, and {', '.join(others)} too", file=sys.stderr)
    return folder, files


def _of_format(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    return sorted(str(file.absolute()) for file in folder.iterdir() if pattern.search(file.name) and file.is_file())


def _unread(folder: Path, split: str) -> list[str]:
    """Return what a split leaves unread of its folder: other folders, images and tables."""
    try:
        others = sorted(each for each in folder.iterdir() if each.name != split and not each.name.startswith("."))
    except PermissionError:  # the split itself may be open
        return ["what else it has, which cannot be listed"]
    folders = [f"{printable(each.name)}/" for each in others if each.is_dir()]
    tables = [each.name for each in others if each.name in TABLES]
    images = sum(each.name.lower().endswith(IMAGE_SUFFIXES) for each in others if not each.is_dir())
    return [*folders, *tables, *([f"{images} images beside it"] if images else [])]
