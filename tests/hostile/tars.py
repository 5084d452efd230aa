"""Tar files of captioned images."""

import io
import tarfile
from collections.abc import Iterator

from tests.hostile import pictures


def member(name: str, data: bytes, size: bytes | None = None, kind: bytes = b"0") -> bytes:
    """A member, whose header may state another size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    if size is not None:
        header[124:136] = size.ljust(12, b"\0")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def valid_tar() -> bytes:
    """Two records, one of them behind a long name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key in ("a", "folder/" * 30 + "b"):
            for suffix, data in ((".png", pictures.png(width=2, height=2)), (".txt", b"a red circle")):
                info = tarfile.TarInfo(key + suffix)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_cases() -> Iterator[tuple[str, bytes]]:
    """(what, tar)"""
    picture, caption = member("a.png", pictures.png()), member("a.txt", b"x")
    for what, size in {
        "negative": b"-1",
        "8 GB": b"77777777777",
        "2^87": b"\x80" + b"\xff" * 11,
        "minus 1 in base 256": b"\xff" * 12,
        "no number": b"size",
        "unicode digits": "\u0663".encode(),
    }.items():
        yield f"a size that is {what}", member("b.png", b"", size) + member("b.txt", b"x") + picture + caption
    for what, text in {
        "no length": b"path=x\n",
        "a length of 0": b"0 path=x\n",
        "a length beyond it": b"99999999999999999999 path=x\n",
        "an enormous size": b"30 size=99999999999999999999\n",
        "a negative size": b"12 size=-5\n",
        "a surrogate": b"16 path=\xed\xa0\x80.png\n",
    }.items():
        yield f"pax with {what}", member("pax", text, kind=b"x") + picture + caption
    yield "a long name of 2 MiB", member("long", b"n" * (2 << 20), kind=b"L") + picture + caption
    yield "long names without end", member("long", b"n" * 600, kind=b"L") * 2000
    yield "a name of null bytes", member("long", bytes(600), kind=b"L") + picture + caption
    yield "a key of 3000 images", member("a.png", pictures.png()) * 3000 + caption
    yield "nothing but zeros", bytes(1 << 20)
    yield "no tar header anywhere", b"n" * (1 << 20)
    yield "a picture of 50000 px", member("a.png", pictures.png(width=50_000, height=50_000)) + caption
