"""TFRecord files of tf.train.Example, read at random and without TensorFlow.

    length     uint64
    its CRC    uint32, masked: ((crc32c >> 15 | crc32c << 17) + 0xa282ead8) mod 2^32
    data       `length` bytes
    its CRC    uint32, masked

little-endian, one after another. Where the records are is found once, from the lengths, and kept in the user's cache
under the files' sizes and times. The CRC of a record's data is compared when the record is read.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.data.examples import MOST_BYTES, ExampleRows
from unclip_jax.data.files import called, open_file, read_part, reported
from unclip_jax.data.index_cache import index_file, load_index, save_index
from unclip_jax.data.skipping import BadRecordError

HEADER, FOOTER = 12, 4
ROW = np.dtype([("shard", "i4"), ("at", "i8"), ("size", "i8")])
VERSION = 1
_MASK = 0xA282EAD8


class TFRecords(ExampleRows):
    """The examples in TFRecord files.

    Attributes:
        faults: what is no record, by its place.
    """

    def __init__(self, shards: Sequence[str], cache_dir: str | Path | None = None):
        self.where = called(shards)
        self._shards = tuple(shards)
        file = index_file("tfrecords", VERSION, shards, cache_dir)
        if (kept := load_index(file, ROW)) is not None:
            self._rows, self.faults, _ = kept
        else:
            found = [_records_of(shard) for shard in shards]
            for number, (rows, _) in enumerate(found):
                rows["shard"] = number
            self._rows = np.concatenate([rows for rows, _ in found])
            self.faults = {place: why for _, each in found for place, why in each.items()}
            save_index(file, self._rows, self.faults)

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> str:
        row = self._rows[index]
        return f"{os.path.basename(self._shards[row['shard']])}, byte {row['at']}"

    def record(self, index: int) -> bytes:
        row = self._rows[index]
        size = int(row["size"])
        if size > MOST_BYTES:
            raise BadRecordError(f"has {size:,} bytes, more than the limit of {MOST_BYTES:,}")
        data = read_part(self._shards[row["shard"]], int(row["at"]), size + FOOTER)
        if len(data) < size + FOOTER:
            raise BadRecordError("the file ends in it; copy it again")
        record = data[:size]
        if masked_crc(record) != int.from_bytes(data[size:], "little"):
            raise BadRecordError("its CRC is another; the file is damaged here")
        return record


def open_tfrecords(shards: Sequence[str], cache_dir: str | Path | None = None) -> TFRecords:
    """Open TFRecord files; raise UserError for what cannot be read."""
    with reported(called(shards)):
        return TFRecords(shards, cache_dir)


def masked_crc(data: bytes) -> int:
    """Return the masked CRC-32C of bytes."""
    with needs("data"):
        import google_crc32c
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def _records_of(shard: str) -> tuple[np.ndarray, dict[str, str]]:
    """Return where the records of a file are, and what is none. Behind a damaged length nothing can be found."""
    name, places, faults = os.path.basename(shard), [], {}
    with open_file(shard) as file:
        size, at = file.size, 0
        while at < size:
            header = file.read_at(at, HEADER)
            if len(header) == HEADER and masked_crc(header[:8]) == struct.unpack("<I", header[8:])[0]:
                (length,) = struct.unpack("<Q", header[:8])
                if length + HEADER + FOOTER > size - at:
                    faults[f"{name}, byte {at}"] = "the file ends in this record; copy it again"
                    break
                places.append((at + HEADER, length))
                at += HEADER + length + FOOTER
                continue
            if at == 0 and header[:2] == b"\x1f\x8b":
                raise UserError(f"{shard} is compressed with gzip, so nothing in it can be found; decompress it")
            faults[f"{name}, byte {at}"] = "is no record, and nothing behind it can be found; copy the file again"
            break
    rows = np.zeros(len(places), ROW)
    if places:
        rows["at"], rows["size"] = zip(*places, strict=True)
    return rows, faults
