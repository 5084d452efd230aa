"""Opening a source of records by the name of a data set, or a folder."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.core.unicode import printable
from unclip_jax.data.filters import MEASURED, DescribedSource, measures
from unclip_jax.data.folder import FolderSource
from unclip_jax.data.records import Record, Report
from unclip_jax.data.tables import TABLES
from unclip_jax.data.tars import TarSource, shards_of
from unclip_jax.images.files import IMAGE_SUFFIXES
from unclip_jax.images.transforms import image_size, read_image

HELD_OUT = ("val", "valid", "validation", "dev")
"""Names of folders that are not meant for training."""


class ShapesSource:
    """The captioned-shapes dataset, made on first use under `data_dir` and read lazily through TFDS.

    Args:
        data_dir: folder that TFDS keeps its datasets in.
        split: "train", "test_seen", "test_unseen" or a slice such as "train[:1000]".
        resolution, num_train, num_test: of the dataset where it has to be made; see `captioned_shapes.prepare`.
    """

    def __init__(self, data_dir: str | Path, split: str, *, resolution: int, num_train: int, num_test: int):
        # Imported here because TFDS takes a second, which a folder of images need not wait for.
        with needs("data"):
            import tensorflow_datasets as tfds

            from unclip_jax.data.captioned_shapes import builder as captioned_shapes

        builder = captioned_shapes.prepare(data_dir, resolution, num_train, num_test)
        try:
            raw = {"image": tfds.decode.SkipDecoding()}
            self._records = builder.as_data_source(split, decoders=raw)  # pyright: ignore[reportCallIssue]
        except ValueError as error:
            raise UserError(
                f"captioned_shapes has no split {split!r}; use one of {', '.join(builder.info.splits)}"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        features = self._records[index]
        name = features["name"].decode()
        image = np.array(read_image(features["image"], name=name))
        return Record(image=image, captions=(features["caption"].decode(),), name=name, key=name)

    def key(self, index: int) -> str:
        """Return the key of a record, its name."""
        return self._records[index]["name"].decode()

    def report(self) -> Report:
        """Report what there is; nothing is left out."""
        return {"images": len(self), "bad": {}}

    def describe(self, names: frozenset[str]) -> Iterator[dict[str, object]]:
        """Yield the columns `names` of every record; see `filters.DescribedSource`."""
        for index in range(len(self)):
            features = self._records[index]
            found: dict[str, object] = {} if "name" not in names else {"name": features["name"].decode()}
            yield found | (measures(image_size(features["image"]), names) if names & MEASURED else {})

    def columns(self) -> list[str]:
        """Return the names of the columns."""
        return ["name"]


def open_source(
    name_or_folder: str | Path,
    split: str,
    data_dir: str | Path,
    *,
    resolution: int = 128,
    num_train: int = 60_000,
    num_test: int = 1_024,
    max_bad_share: float = 0.01,
    min_side: int = 8,
    captions: bool = True,
) -> DescribedSource:
    """Open a dataset by name, a folder of captioned images, or tar files of them.

    Args:
        name_or_folder: "captioned_shapes"; a folder of images or of tar files; or tar files themselves, see
            `tars.shards_of`. A folder with subfolders `train` and `test` has these splits; one without is all "train".
            What is not read of it is said.
        split: "train" or "test" of a folder; for captioned_shapes see `ShapesSource`.
        data_dir: where datasets with a name are kept.
        resolution, num_train, num_test: of captioned_shapes, see `ShapesSource`.
        max_bad_share, min_side, captions: of a folder and of tar files, see `FolderSource`.

    Raises UserError for a name or a split that does not exist.
    """
    if str(name_or_folder) == "captioned_shapes":
        return ShapesSource(data_dir, split, resolution=resolution, num_train=num_train, num_test=num_test)

    kept = {"max_bad_share": max_bad_share, "min_side": min_side, "captions": captions}
    if str(name_or_folder).endswith(".tar"):
        if split != "train":
            raise UserError(f"tar files have no split {split!r}; name the files of it as the source")
        return TarSource(shards_of(str(name_or_folder)), **kept)
    folder = Path(os.path.expanduser(name_or_folder))
    if not str(name_or_folder) or not os.path.isdir(folder):
        known = "captioned_shapes, a folder of images, or tar files as in shards/{000..099}.tar"
        raise UserError(f"no dataset {str(name_or_folder)!r}; give {known}")
    splits = [name for name in ("train", "test") if (folder / name).is_dir()]
    if not splits and split == "train":
        if others := [f"{name}/" for name in HELD_OUT if (folder / name).is_dir()]:
            print(f"{folder} has no train/, so all of it is read, and {', '.join(others)} too", file=sys.stderr)
    else:
        if split not in splits:
            raise UserError(f"{folder} has no split {split!r}; put its images into the folder {folder / split}")
        if unread := _unread(folder, split):
            print(f"{folder}: {split}/ alone is read, not {', '.join(unread)}", file=sys.stderr)
        folder /= split
    if shards := sorted(str(shard) for shard in folder.glob("*.tar")):
        if any(each.name.lower().endswith(IMAGE_SUFFIXES) for each in folder.iterdir()):
            print(f"{folder}: its tar files are read, not the images beside them", file=sys.stderr)
        return TarSource(shards, **kept)
    return FolderSource(folder, **kept)


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
