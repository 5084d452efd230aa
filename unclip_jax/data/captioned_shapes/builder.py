"""The captioned shapes as a TFDS dataset, built and read without TensorFlow.

Splits: train, test_seen (the same distribution as train) and test_unseen (scenes made with the colour-shape
pairs that training never shows; see `shapes.HELD_OUT`). An example is {"image": PNG, "caption": text,
"scene": the JSON of `shapes.Scene`, "name": "train/000123"}. It depends on its split and number alone, and a
split is stored in the order of the numbers, so a smaller dataset is a prefix of a larger one.
"""

import contextlib
import dataclasses
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.data.captioned_shapes import render as draw
from unclip_jax.data.captioned_shapes import scenes as shapes


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
    """A size of the dataset: image side in pixels, examples in train and in each of the two test splits."""

    resolution: int = 128
    num_train: int = 60_000
    num_test: int = 1_024

    @classmethod
    def of(cls, resolution: int, num_train: int, num_test: int) -> "ShapesConfig":
        """Return the config of these numbers, with a name, and so a folder, of its own."""
        for field, value in {"resolution": resolution, "num_train": num_train, "num_test": num_test}.items():
            if value < 1:
                raise UserError(f"{field} of the captioned shapes is {value}; give a number of at least 1")
        usual = (num_train, num_test) == (cls.num_train, cls.num_test)
        name = f"{resolution}" if usual else f"{resolution}-{num_train}-{num_test}"
        return cls(name=name, resolution=resolution, num_train=num_train, num_test=num_test)


class CaptionedShapes(tfds.core.GeneratorBasedBuilder):
    """One or two coloured shapes on a background, rendered procedurally, with an English caption."""

    VERSION = tfds.core.Version("2.0.0")
    # TFDS derives this with importlib_resources, which it does not require, to find checksums of downloads.
    code_path = None
    BUILDER_CONFIGS: ClassVar[list] = [ShapesConfig.of(128, ShapesConfig.num_train, ShapesConfig.num_test)]

    @property
    def _config(self) -> ShapesConfig:
        return cast(ShapesConfig, self.builder_config)

    def _info(self) -> tfds.core.DatasetInfo:
        side = self._config.resolution
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
                "caption": tfds.features.Text(),
                "scene": tfds.features.Text(),
                "name": tfds.features.Text(),
            }
        )
        # Given here in full, since looking a description up needs a package folder around the builder.
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=features,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        test = self._config.num_test
        sizes = {"train": self._config.num_train, "test_seen": test, "test_unseen": test}
        return {split: self._generate_examples(split, sizes[split]) for split in shapes.SPLITS}

    def _generate_examples(self, split: shapes.Split, count: int) -> Iterator[tuple[int, dict]]:
        for index in range(count):
            scene, caption = shapes.example(split, index)
            fields = {
                # TFDS encodes arrays through a TensorFlow graph; it stores encoded bytes as they are.
                "image": _png(draw.render(scene, self._config.resolution)),
                "caption": caption,
                "scene": scene.to_json(),
                "name": f"{split}/{index:06d}",
            }
            yield index, fields


def prepare(
    data_dir: str | os.PathLike,
    resolution: int = 128,
    num_train: int = 60_000,
    num_test: int = 1_024,
) -> CaptionedShapes:
    """Return the dataset under `data_dir`, building it first if it is not there yet.

    TFDS builds in a temporary folder and renames it when complete: an interrupted build is never taken for a
    whole one, and of two processes that build at once the later uses the files of the earlier. Raises
    UserError if a number is below 1.
    """
    config = ShapesConfig.of(resolution, num_train, num_test)
    # TFDS takes a config of a known name only by that name.
    known = config.name in CaptionedShapes.builder_configs
    with _quiet_absl():
        builder = CaptionedShapes(
            config=config.name if known else config,
            data_dir=Path(os.path.expanduser(data_dir)),
            file_format="array_record",
        )
    if builder.data_path.exists():
        return builder
    total = num_train + 2 * num_test
    print(f"building {total:,} captioned shapes at {resolution} px in {builder.data_path}", file=sys.stderr)
    start = time.perf_counter()
    try:
        builder.download_and_prepare()
    except OSError:
        if not builder.data_path.exists():
            raise
        return prepare(data_dir, resolution, num_train, num_test)
    print(f"built in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return builder


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Silence TFDS, which warns about every config that is not the usual one."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
