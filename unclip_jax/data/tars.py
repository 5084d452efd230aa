"""Tar files of captioned images, as WebDataset and img2dataset lay them out.

    00000.tar: 000000.jpg 000000.txt 000000.json 000001.jpg ...     one image of a key, and its caption
    .txt       each line that is not empty is a caption; or
    .json      "caption" (or "text"), a string or a list of them

Records are read at random, by `unclip_jax.data.tar_index`, in the order of the files' names and of the members in each.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import JsonDict
from unclip_jax.data.captions import MOST_BYTES, NO_CAPTION, cells_of
from unclip_jax.data.columns import MOST_IMAGE_BYTES
from unclip_jax.data.files import called, read_part, reported
from unclip_jax.data.filters import MEASURED, measures
from unclip_jax.data.records import Record
from unclip_jax.data.skipping import BadRecordError, SkippingSource, check_limits
from unclip_jax.data.tables import caption_fault
from unclip_jax.data.tar_index import CAPTIONS, read_index
from unclip_jax.images.transforms import image_size, read_image

TOGETHER = 1 << 15
"""Bytes between an image and its caption that are read with them."""
HEADER_BYTES = 1 << 14
"""Of an image, in which most say how large they are."""


class TarSource(SkippingSource):
    """The captioned images in tar files.

    Args:
        shards: the files, see `patterns.files_of`.
        max_bad_share: largest share of records that may be unusable.
        min_side: images with fewer pixels along their shorter side are left out.
        captions: False takes images alone; every caption is then "".
        cache_dir: where the index is kept; the user's cache folder where it is None.

    Raises UserError where there is nothing to read or too much is unusable.
    """

    def __init__(
        self,
        shards: Sequence[str],
        *,
        max_bad_share: float = 0.01,
        min_side: int = 8,
        captions: bool = True,
        cache_dir: str | Path | None = None,
    ):
        check_limits(max_bad_share, min_side)
        with reported(called(shards)):
            self._index = read_index(shards, cache_dir)
        self._min_side, self._captions = min_side, captions
        where = called(shards)
        rows = self._index.rows
        self._records = np.flatnonzero(rows["caption"]) if captions else np.arange(len(rows))
        if len(rows) and not len(self._records):
            found = f"{where} holds {len(rows):,} images and no captions"
            raise UserError(f"{found}; put KEY.txt, or KEY.json with a caption, after each KEY.jpg")
        without = (
            {} if not captions else {self._place(int(i)): NO_CAPTION for i in np.flatnonzero(rows["caption"] == 0)}
        )
        bad = self._index.faults | without
        super().__init__(where, len(self._records), bad, max_bad_share)
        if bad:
            self.check()
            print(f"{where}: {len(bad):,} of {self._total:,} records left out: {self.named(3)}", file=sys.stderr)
        if not len(self):
            raise UserError(f"{where} holds no images with captions; give one that does")

    def key(self, index: int) -> str:
        return self._index.key(int(self._records[index]))

    def name(self, index: int) -> str:
        return self._place(int(self._records[index]))

    def _place(self, number: int) -> str:
        shard = self._index.shards[self._index.rows["shard"][number]]
        return f"{os.path.basename(shard)}/{self._index.key(number)}"

    def describe(self, names: frozenset[str]) -> Iterator[dict[str, object]]:
        """Yield the columns `names` of every record, from its .json; see `filters.DescribedSource`."""
        for number in self._records.tolist():
            cells = self._cells(number) if names - MEASURED else {}
            found: dict[str, object] = {name: cells[name] for name in names & cells.keys()}
            yield found | (measures(self._size(number), names) if names & MEASURED else {})

    def columns(self) -> list[str]:
        """Return the names of the columns of the first record."""
        return list(self._cells(int(self._records[0])))

    def _cells(self, number: int) -> JsonDict:
        row = self._index.rows[number]
        if not 0 < row["json_bytes"] <= MOST_BYTES:
            return {}
        return cells_of(read_part(self._index.shards[row["shard"]], int(row["json_at"]), int(row["json_bytes"])))

    def _size(self, number: int) -> tuple[int, int] | None:
        row = self._index.rows[number]
        for most in (HEADER_BYTES, MOST_IMAGE_BYTES):
            wanted = min(int(row["image_bytes"]), most)
            data = read_part(self._index.shards[row["shard"]], int(row["image_at"]), wanted)
            if (size := image_size(data)) is not None or len(data) == row["image_bytes"]:
                return size
        return None

    def read(self, index: int) -> Record:
        row, name = self._index.rows[self._records[index]], self.name(index)
        shard = self._index.shards[row["shard"]]
        wanted = [(int(row["image_at"]), int(row["image_bytes"]), MOST_IMAGE_BYTES)]
        if self._captions:
            wanted.append((int(row["caption_at"]), int(row["caption_bytes"]), MOST_BYTES))
        image_bytes, text = [*_parts(shard, wanted), b""][:2]
        captions = _captions(text, CAPTIONS[row["caption"]]) if self._captions else ("",)
        image = read_image(image_bytes, name=name)
        if min(image.size) < self._min_side:
            side = f"its shorter side has {min(image.size)} px"
            raise BadRecordError(f"{side}, fewer than min_side {self._min_side}")
        return Record(image=np.array(image), captions=captions, name=name, key=self.key(index))


def _parts(file: str, wanted: Sequence[tuple[int, int, int]]) -> list[bytes]:
    """Read parts of a file, where each begins, its bytes, and the most that it may have: at once if they lie together,
    since a request to a bucket takes its time.
    """
    for _, size, most in wanted:
        if size > most:
            raise BadRecordError(f"has a part of {size:,} bytes, more than the limit of {most:,}")
    first, last = min(at for at, _, _ in wanted), max(at + size for at, size, _ in wanted)
    if last - first <= sum(size for _, size, _ in wanted) + TOGETHER:
        whole = read_part(file, first, last - first)
        found = [whole[at - first : at - first + size] for at, size, _ in wanted]
    else:
        found = [read_part(file, at, size) for at, size, _ in wanted]
    if any(len(part) < size for part, (_, size, _) in zip(found, wanted, strict=True)):
        raise BadRecordError("the file ends in it; copy it again")
    return found


def _captions(text: bytes, suffix: str) -> tuple[str, ...]:
    """Return what a caption file says, alternatives; raise BadRecordError where that is nothing."""
    decoded = text.decode("utf-8-sig", "surrogateescape")
    given: object = re.split(r"\r\n?|\n", decoded)
    if suffix == ".json":
        try:
            cells = json.loads(decoded)
        except (ValueError, RecursionError) as error:
            raise BadRecordError(f"its .json is no JSON ({error})") from error
        given = (
            next((cells[key] for key in ("caption", "text") if cells.get(key)), None)
            if isinstance(cells, dict)
            else None
        )
    several = given if isinstance(given, list) else [given]
    lines = [" ".join(line.split()) for line in several if isinstance(line, str)]
    if len(lines) < len(several):
        raise BadRecordError("its .json has no caption that is a string or a list of them")
    if not any(lines):
        raise BadRecordError(NO_CAPTION)
    if (fault := caption_fault("caption", lines)) is not None:
        raise BadRecordError(fault)
    return tuple(dict.fromkeys(line for line in lines if line))
