"""The captioned-shapes dataset as a source."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.data.filters import MEASURED, measures
from unclip_jax.data.records import Record, Report
from unclip_jax.images.transforms import image_size, read_image


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
