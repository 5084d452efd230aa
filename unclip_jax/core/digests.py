"""Digests of files, written with what they belong to and compared while it is read.

    XXH3, 128 bits, in hex: some 20 GB/s on one core, so that comparing costs a few hundredths of the time to load

They find damage: a flipped bit, a block that is lost, a file of another copy. They are no protection against somebody
who means harm. `UNCLIP_JAX_NO_CHECK=1` in the environment leaves the comparison out.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

Algorithm = Callable[[], Any]
"""What `hashlib.file_digest` takes: `xxhash.xxh3_128`, `hashlib.sha256`."""


class Altered(Exception):  # noqa: N818  # what became of a file, for callers that say what to do about it
    """`path` is not as it was written, or not there."""

    def __init__(self, path: Path):
        super().__init__(f"{path} is not as it was written")
        self.path = path


def file_digest(path: Path, algorithm: Algorithm = xxhash.xxh3_128) -> str:
    """Return the digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def json_digest(data: object) -> str:
    """Return the digest of what JSON says, however it is written down."""
    return xxhash.xxh3_128_hexdigest(json.dumps(data, sort_keys=True).encode())


def compare(files: Mapping[Path, str], algorithm: Algorithm = xxhash.xxh3_128) -> None:
    """Compare files with their digests; raises Altered for the first that differs."""
    if os.environ.get("UNCLIP_JAX_NO_CHECK") == "1":
        return
    for path, expected in files.items():
        if not path.is_file() or file_digest(path, algorithm) != expected:
            raise Altered(path)


@contextmanager
def compared(files: Mapping[Path, str], algorithm: Algorithm = xxhash.xxh3_128) -> Iterator[None]:
    """Compare files with their digests in a thread while the body reads them.

    Raises Altered at the end of a body that noticed nothing.
    """
    with ThreadPoolExecutor(1, "digests") as pool:
        comparison = pool.submit(compare, files, algorithm)
        yield
        comparison.result()
