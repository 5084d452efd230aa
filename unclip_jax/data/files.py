"""Files of records, on this machine or in a bucket: gs://, s3:// and whatever else fsspec knows.

Here alone is told which of the two a file is. A file is read in parts at random, each a request of its own where it is
remote, and from its beginning on, with a read-ahead, where its index is made.
"""

import contextlib
import functools
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs

READ_AHEAD = 1 << 22
"""Bytes that are read at once of a remote file, while its index is made."""
FileSystem = Any
"""An `fsspec.AbstractFileSystem`."""
Readable = Any
"""A name, or an object with `read` and `seek`."""


class OpenFile(NamedTuple):
    """A file: its size in bytes, and what reads a part of it, shorter where the file ends."""

    size: int
    read_at: Callable[[int, int], bytes]


def called(files: Sequence[str]) -> str:
    """Return what several files are called in a message."""
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1:,} more"


def is_remote(name: str) -> bool:
    """Return whether a name is that of a file elsewhere, as in gs://bucket/file."""
    return "://" in name


@contextlib.contextmanager
def reported(name: str) -> Iterator[None]:
    """Make what goes wrong with a file a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_remote(name) and not isinstance(error, OSError):
            raise
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{name} cannot be read ({why}); give a file that can") from error


@contextlib.contextmanager
def open_file(name: str) -> Iterator[OpenFile]:
    """Open a file to read it from its beginning on."""
    if is_remote(name):
        system, path = _system(name)
        with system.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead") as file:

            def read_at(at: int, size: int) -> bytes:
                file.seek(at)
                return file.read(size)

            yield OpenFile(int(file.size), read_at)
        return
    with open(name, "rb") as file:
        number = file.fileno()
        yield OpenFile(os.fstat(number).st_size, lambda at, size: os.pread(number, size, at))


def read_part(name: str, at: int, size: int) -> bytes:
    """Read a part of a file, shorter where the file ends. Raises UserError for a file that cannot be read."""
    with reported(name):
        if is_remote(name):
            system, path = _system(name)
            return system.cat_file(path, start=at, end=at + size) if size else b""
        with open(name, "rb") as file:
            return os.pread(file.fileno(), size, at)


def stamp(name: str) -> tuple[object, ...]:
    """Return what changes when a file does: its size, and its time, tag or generation."""
    if not is_remote(name):
        status = os.stat(name)
        return status.st_size, status.st_mtime_ns
    system, path = _system(name)
    found = system.info(path)
    tags = (found.get(key) for key in ("generation", "ETag", "etag", "mtime", "updated", "LastModified", "created"))
    return int(found["size"]), next((str(tag) for tag in tags if tag is not None), "")


def matching(pattern: str) -> list[str]:
    """Return the files that a name with * and ? means, sorted, or the file of that name; none where there is none."""
    if is_remote(pattern):
        with reported(pattern):
            system, path = _system(pattern)
            names = system.glob(path) if glob.has_magic(pattern) else [path] if system.isfile(path) else []
            return sorted(system.unstrip_protocol(name) for name in names)
    if glob.has_magic(pattern) and not os.path.exists(pattern):
        return sorted(os.path.abspath(name) for name in glob.glob(pattern) if os.path.isfile(name))
    return [os.path.abspath(pattern)] if os.path.isfile(pattern) else []


def for_library(name: str) -> Readable:
    """Return what a library can read a file from: its name, or where it is remote a file object, open."""
    if not is_remote(name):
        return name
    system, path = _system(name)
    return system.open(path, "rb", block_size=READ_AHEAD)


@functools.lru_cache(maxsize=4096)
def _system(name: str) -> tuple[FileSystem, str]:
    with needs("data"):
        import fsspec
    try:
        return fsspec.url_to_fs(name)
    except (ImportError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise UserError(f"{name} cannot be opened: {why}") from error
