"""Datasets of TensorFlow Datasets by name: "tfds:coco_captions/2014:1.1.0".

They are read at random from where `tfds` has prepared them, in ArrayRecord, and without TensorFlow. Features inside
others have a slash in their names, as in captions/text.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.data.columns import Rows
from unclip_jax.data.skipping import BadRecordError

Features = Any
"""A `tfds.features.FeatureConnector`."""


class TFDSRows(Rows):
    """A split of a prepared dataset.

    Args:
        name: as tfds has it: dataset/config:version.
        split: a split or a slice of one, "train[:1000]".
        data_dir: where tfds keeps its datasets.

    Raises UserError for a dataset that is not there, or not prepared so that it can be read at random.
    """

    def __init__(self, name: str, split: str, data_dir: str | Path):
        with needs("data"):
            import tensorflow_datasets as tfds
        self.where, self._split = f"tfds:{name}", split
        try:
            # What is prepared is read from its files alone; the code that makes it need not be there.
            builder = tfds.builder(name, data_dir=str(data_dir), try_gcs=False)
        except Exception as error:
            why = " ".join(str(error).split())[:160]
            line = f"no dataset {name!r} in {data_dir} ({why})"
            raise UserError(f"{line}; name one that tfds has prepared there") from error
        if split.split("[")[0] not in builder.info.splits:
            known = ", ".join(builder.info.splits) or "none: it is not prepared"
            line = f"{self.where} has no split {split!r} in {data_dir}; it has {known}"
            raise UserError(f"{line}; `tfds build {name} --file_format=array_record` prepares it")
        raw = {path: tfds.decode.SkipDecoding() for path in _images(builder.info.features)}
        try:
            self._records: Any = builder.as_data_source(split, decoders=raw or None)  # pyright: ignore
            self._count = len(self._records)
        except (NotImplementedError, ValueError, OSError) as error:
            why = " ".join(str(error).split())[:160]
            line = f"{self.where} cannot be read at random ({why})"
            raise UserError(f"{line}; prepare it with --file_format=array_record") from error
        self._columns = [path for path, _ in _leaves(builder.info.features)]

    @property
    def columns(self) -> Sequence[str]:
        """The names of the features."""
        return self._columns

    def __len__(self) -> int:
        return self._count

    def cells(self, index: int, names: Sequence[str]) -> Mapping[str, object]:
        try:
            record = self._records[index]
        except Exception as error:
            raise BadRecordError("cannot be read; the file is damaged here") from error
        return {name: cell for name in names if (cell := _at(record, name)) is not None}

    def place(self, index: int) -> str:
        return f"{self._split}, record {index}"


def _leaves(features: Features, path: str = "") -> Iterator[tuple[str, Features]]:
    """Yield the features that have none in them, by path."""
    inner = getattr(features, "feature", features)  # a sequence has one
    if hasattr(inner, "items"):
        for name, feature in inner.items():
            yield from _leaves(feature, f"{path}/{name}" if path else name)
    else:
        yield path, features


def _images(features: Features) -> Iterator[str]:
    """Yield the names of the features on top that are images."""
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            yield name


def _at(record: object, path: str) -> object:
    for name in path.split("/"):
        if not isinstance(record, Mapping) or name not in record:
            # Names may have a slash of their own.
            return None
        record = record[name]
    return record
