"""Zip archives that may come from anywhere: their directory, and what their members expand to, are bounded.

    MAX_DIRECTORY    bytes of the directory, which is held whole: some 50,000 members
    MAX_INFLATED     bytes that a member may expand to; one that is not compressed is as long as the file shows

Members are stored, or deflated; other ways of compression expand whole blocks at once.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from unclip_jax.core.reading import MIB, check_regular

MAX_DIRECTORY = 4 * MIB
MAX_INFLATED = 128 * MIB
_PIECE = MIB
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_DAMAGES = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, OverflowError, KeyError,
    OSError,
)  # fmt: skip


class ArchiveError(ValueError):
    """An archive that is damaged, or goes beyond the bounds."""


class Archive:
    """A zip archive, open for reading until it is closed.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is no regular file.
        ArchiveError: it cannot be read. So do all methods.
    """

    def __init__(self, path: Path):
        check_regular(path)
        self.path = path
        self._file = _Pieces(path)
        try:
            with _understood():
                self._zip = zipfile.ZipFile(self._file)
        except ArchiveError:
            self._file.close()
            raise
        self._infos = {info.filename: info for info in self._zip.infolist()}
        self._length = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()

    @property
    def names(self) -> Collection[str]:
        """The members."""
        return self._infos.keys()

    def size(self, name: str) -> int:
        """Return the length of a member; refuse one that is longer than its bytes in the file, or expands too far."""
        info = self._info(name)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            if info.file_size > MAX_INFLATED:
                limit = f"at most {MAX_INFLATED // MIB} MiB are; store it uncompressed"
                raise ArchiveError(f"{name} is to expand to {info.file_size:,} bytes, {limit}")
        elif not self.is_stored(name):
            raise ArchiveError(f"{name} is compressed in a way that is not read; store it, or deflate it")
        elif info.file_size != info.compress_size or info.file_size > self._length:
            raise ArchiveError(f"{name} is to have {info.file_size:,} bytes, which the file has not")
        return info.file_size

    def is_stored(self, name: str) -> bool:
        """Return whether a member is as it is, uncompressed."""
        return self._info(name).compress_type == zipfile.ZIP_STORED

    def read(self, name: str, limit: int) -> bytes:
        """Read a member of at most `limit` bytes."""
        if self.size(name) > limit:
            raise ArchiveError(f"{name} has {self.size(name):,} bytes; at most {limit:,} are read")
        with self.open(name) as member:
            data = read_exactly(member, self.size(name))
        return bytes(data)

    @contextmanager
    def open(self, name: str) -> Iterator[io.BufferedIOBase]:
        """Open a member; read it with `read_exactly`."""
        self.size(name)
        with _understood(), self._zip.open(self._info(name)) as member:
            yield cast(io.BufferedIOBase, member)

    def position(self, name: str) -> int:
        """Return where the bytes of a stored member begin in the file: its own header, before them, has any length."""
        info, length = self._info(name), self.size(name)
        with _understood():
            self._file.seek(info.header_offset)
            magic, name_length, extra_length = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if magic != b"PK\x03\x04" or start + length > self._length:
            raise ArchiveError(f"{name} does not lie where the directory says")
        return start

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._infos:
            raise ArchiveError(f"{name} is missing")
        return self._infos[name]


def read_exactly(member: io.BufferedIOBase, length: int) -> bytearray:
    """Read so many bytes of a member, and its sum where it ends there; ArchiveError where it has fewer."""
    data = bytearray(length)
    view, done = memoryview(data), 0
    with _understood():
        while done < length:
            piece = member.read(min(_PIECE, length - done))
            if not piece:
                raise ArchiveError(f"a member ends after {done:,} of {length:,} bytes")
            view[done : done + len(piece)] = piece
            done += len(piece)
        member.read(1)
    return data


class _Pieces(io.FileIO):
    """A file of which the zip module reads no more at once than a directory may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(MAX_DIRECTORY if size is None or size < 0 else min(size, MAX_DIRECTORY)) or b""
        if len(data) == MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {MAX_DIRECTORY // MIB} MiB or more, which is not read")
        return data


@contextmanager
def _understood() -> Iterator[None]:
    """Turn what the zip module raises on damaged archives into ArchiveError."""
    try:
        yield
    except ArchiveError:
        raise
    except (*_DAMAGES, ValueError) as error:
        raise ArchiveError(str(error) or type(error).__name__) from error
