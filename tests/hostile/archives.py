"""Zip archives whose directory lies, and valid bytes that are damaged."""

import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterator

from tests.hostile import BOMB

Files = dict[str, bytes]


def archive(members: Files, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def patched(data: bytes, at: int, form: str, value: int) -> bytes:
    """The bytes with a number written over them."""
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def bent_archives(members: Files, bomb: str) -> Iterator[tuple[str, bytes]]:
    """Archives whose directory lies; `bomb` names the member that expands."""
    data = archive(members)
    directory, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    yield "compression is unknown", patched(data, directory + 10, "<H", 97)
    yield "member is encrypted", patched(patched(data, directory + 8, "<H", 1), 6, "<H", 1)
    yield "version is of the future", patched(data, directory + 6, "<H", 999)
    yield "size of a member is 4 GB", patched(data, directory + 24, "<I", 2**32 - 2)
    yield (
        "both sizes of a member are 4 GB",
        patched(patched(data, directory + 24, "<I", 2**32 - 2), directory + 20, "<I", 2**32 - 2),
    )
    yield "member begins beyond the end", patched(data, directory + 42, "<I", 2**31)
    yield "directory begins beyond the end", patched(data, end + 16, "<I", 2**31)
    yield "directory is 4 GB long", patched(data, end + 12, "<I", 2**32 - 2)
    yield "directory has no length", patched(data, end + 12, "<I", 0)
    yield "name is no text", data.replace(next(iter(members)).encode(), b"\xff" * len(next(iter(members))))
    many = archive({**members, **{f"{i}": b"" for i in range(70_000)}})
    yield "70,000 members", many
    for name, kind in (("deflate", zipfile.ZIP_DEFLATED), ("bzip2", zipfile.ZIP_BZIP2), ("lzma", zipfile.ZIP_LZMA)):
        yield (
            f"a member expands by {name}",
            archive(
                {**members, bomb: members[bomb] + bytes(BOMB if kind == zipfile.ZIP_DEFLATED else BOMB // 10)}, kind
            ),
        )
    lying = archive({**members, bomb: bytes(BOMB // 10)}, zipfile.ZIP_BZIP2)
    yield "a member expands beyond its size", patched(lying, lying.rindex(b"PK\1\2") + 24, "<I", 100)


def mutated(data: bytes, random: random.Random) -> bytes:
    """Valid bytes, damaged: bits flipped, cut, spliced with themselves, numbers replaced by extreme ones."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 5, 20))):
        if not data:
            break
        at = random.randrange(len(data))
        match random.randrange(6):
            case 0:
                data[at] ^= 1 << random.randrange(8)
            case 1:
                data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, ord("9"), ord("("), ord("[")))
            case 2:
                del data[at : at + random.choice((1, 2, 4, 16, len(data)))]
            case 3:
                other = random.randrange(len(data))
                data[at:at] = data[other : other + random.choice((1, 4, 16, 64))]
            case 4:
                number = random.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
                width = random.choice((2, 4, 8))
                data[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, random.choice(("little", "big")))
            case 5:
                data[at:at] = bytes(random.randrange(256) for _ in range(random.choice((1, 4, 32))))
    return bytes(data)


def rezipped(data: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
    """An archive in which one member is another, its sums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    return archive(members | {member: change(members[member])})
