"""How fast records are read at random from each kind of source, and what an index of many tar members costs.

    python -m benchmarks.sources [--images 3000] [--side 256] [--rounds 5]
    python -m benchmarks.sources --members 1000000

The same JPEGs, as heavy as photographs, are written as a folder, tar files, parquet, TFRecord, ArrayRecord and a
Hugging Face dataset. Images a second are of processor time, on one thread, in turn; "without decoding" reads the same
records with a decoder that returns at once. With --members an index of so many small tar members is built and opened
again, each in a process of its own, so that the peak memory is its own.
"""

import dataclasses
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from benchmarks.input import photograph
from tests.data import formats
from unclip_jax.core import command_line
from unclip_jax.core.errors import run_cli
from unclip_jax.data.records import Source
from unclip_jax.data.sources import open_source

KINDS = ("folder", "tar", "parquet", "tfrecord", "array_record", "hf_disk")
INDEX = """
import pathlib, re, sys, time
from unclip_jax.data.tar_index import read_index

start = time.process_time()
index = read_index(sys.argv[1:])
seconds = time.process_time() - start
peak = int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
print(f"{len(index.rows):,} records in {seconds:.2f} s, {peak:,.0f} MB at the most")
"""
"""A program for a process of its own."""
READERS = [f"unclip_jax.data.{module}.read_image" for module in ("folder", "tars", "columns")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure reading from each kind of source, or the index of tar files."""

    images: int = 3000
    """Records."""
    side: int = 256
    """Shorter side of the JPEGs in px."""
    rounds: int = 5
    """Times that each kind is read, in turn."""
    members: int = 0
    """Members of a tar file to index instead, two a record."""


def main() -> None:
    """Measure, and print the table."""
    options: Options = command_line.parse(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        if options.members:
            _measure_index(Path(name), options.members)
        else:
            _measure_reading(Path(name), options)


def _measure_index(folder: Path, members: int) -> None:
    shard = folder / "shard.tar"
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(members // 2):
            for suffix in (".jpg", ".txt"):
                member = tarfile.TarInfo(f"{number:09d}{suffix}")
                member.size = 16
                tar.addfile(member, io.BytesIO(b"0123456789abcdef"))
    for what in ("built", "opened again"):
        done = subprocess.run([sys.executable, "-c", INDEX, shard], capture_output=True, text=True, check=True)
        print(f"{what:<14}{done.stdout.strip()}")


def _measure_reading(folder: Path, options: Options) -> None:
    records = list(_records(options))
    sources = {kind: open_source(formats.write(kind, folder / kind, records), "train", folder) for kind in KINDS}
    order = np.random.default_rng(0).permutation(options.images).tolist()
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind, source in sources.items():
            whole = _seconds(source, order)
            with ExitStack() as stack:
                small = Image.new("RGB", (8, 8))
                for reader in READERS:
                    stack.enter_context(mock.patch(reader, lambda *_, small=small, **__: small))
                seconds[kind].append((whole, _seconds(source, order)))
    weight = sum(len(image) for _, image, _ in records) / len(records) / 1000
    print(f"{options.images:,} JPEGs of {options.side} px, {weight:.0f} kB on average, {options.rounds} rounds in turn")
    print("| source | images/s a core | of the folder's | without decoding, µs a record |\n|---|---|---|---|")
    for kind, times in seconds.items():
        rates = options.images / np.array(times)[:, 0]
        ratios = np.array(seconds["folder"])[:, 0] / np.array(times)[:, 0]
        bare = 1e6 * np.array(times)[:, 1] / options.images
        spread = f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"
        print(f"| {kind} | {np.median(rates):,.0f} | {spread} | {np.median(bare):.0f} |")


def _records(options: Options) -> Iterator[tuple[str, bytes, list[str]]]:
    rng = np.random.default_rng(0)
    for number in range(options.images):
        yield f"{number:06d}", photograph(rng, options.side), [f"picture {number}"]


def _seconds(source: Source, order: list[int]) -> float:
    """Return the seconds of processor time that reading in this order takes."""
    start = time.process_time()
    for index in order:
        source[index]
    return time.process_time() - start


if __name__ == "__main__":
    run_cli(main)
