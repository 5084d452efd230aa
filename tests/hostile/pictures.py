"""Pictures and what they say of themselves."""

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from tests.hostile import BOMB


def chunk(kind: bytes, content: bytes, length: int | None = None, crc: int | None = None) -> bytes:
    """A chunk of a PNG."""
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content) if length is None else length) + kind + content + struct.pack(">I", crc)


def png(*chunks: bytes, width: int = 2, height: int = 2, end: bool = True) -> bytes:
    """A PNG of black pixels with these chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes((3 * 2 + 1) * 2)))
    data = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, pixels, *([chunk(b"IEND", b"")] if end else [])]
    return b"".join(data)


def again(text: str) -> bytes:
    """A chunk that says how a picture was drawn."""
    return chunk(b"iTXt", b"again\0\0\0\0\0" + text.encode("utf-8", "surrogatepass"))


def provenance(**options: Any) -> str:
    """Text that names a command and its options."""
    return json.dumps({"command": "text_to_image", "options": options, "inputs": {}})


def valid_png() -> bytes:
    """A picture that says how it was drawn."""
    return png(again(provenance(prompt="a red circle")), chunk(b"tEXt", b"software\0unclip_jax"))


def bomb(size: int) -> bytes:
    """Zeros, compressed."""
    press = zlib.compressobj(9)
    return b"".join([*(press.compress(bytes(10**6)) for _ in range(size // 10**6)), press.flush()])


def png_cases() -> Iterator[tuple[str, bytes]]:
    """Pictures and their text."""
    good = again(provenance(prompt="x"))
    yield "50000 px", png(good, width=50_000, height=50_000)
    yield "12000 px", png(good, width=12_000, height=12_000)
    yield "9000 px, text after the pixels", png(width=9_000, height=9_000, end=False) + good + chunk(b"IEND", b"")
    yield "2^31 px", png(good, width=2**31 - 1, height=2**31 - 1)
    yield "no px", png(good, width=0, height=0)
    big = bomb(BOMB)
    yield "zTXt that expands", png(chunk(b"zTXt", b"again\0\0" + big))
    yield "iTXt that expands", png(chunk(b"iTXt", b"again\0\1\0\0\0" + big))
    yield "text that expands after the pixels", png(end=False) + chunk(b"zTXt", b"x\0\0" + big) + chunk(b"IEND", b"")
    yield "profile that expands", png(good, chunk(b"iCCP", b"x\0\0" + big))
    press = bomb(10**6)
    yield "100 texts that expand", png(*[chunk(b"zTXt", b"k%d\0\0" % i + press) for i in range(100)], good)
    yield "endless text", png(chunk(b"tEXt", b"again\0" + b"x" * BOMB))
    yield "100,000 texts", png(*[chunk(b"tEXt", b"k%d\0x" % i) for i in range(100_000)], good)
    yield "500,000 empty chunks", png(chunk(b"abcd", b"") * 500_000, good)
    yield "chunk of 4 GB", png(chunk(b"tEXt", b"again\0x", length=2**32 - 1))
    yield "chunk of 2 GB", png(chunk(b"tEXt", b"again\0x", length=2**31 - 1))
    yield "text that is cut", png(chunk(b"zTXt", b"again\0\0" + zlib.compress(b"x" * 1000)[:-8]))
    yield "text that is no zlib", png(chunk(b"zTXt", b"again\0\0garbage"))
    yield "unknown compression", png(chunk(b"zTXt", b"again\0\7garbage"))
    yield "text without an end of its key", png(chunk(b"tEXt", b"again"))
    yield "iTXt without its parts", png(chunk(b"iTXt", b"again\0\0"))
    yield "text that is not UTF-8", png(chunk(b"iTXt", b"again\0\0\0\0\0\xff\xfe"))
    yield "sum that is wrong", png(chunk(b"tEXt", b"again\0x", crc=5), good)
    yield "no end", png(good, end=False)
    yield "no header", b"\x89PNG\r\n\x1a\n" + good
    yield "no chunks", b"\x89PNG\r\n\x1a\n"
    yield "nothing", b""
    for name, text in {
        "deep": "[" * 100_000,
        "deep and closed": '{"command": ' + "[" * 900 + "]" * 900 + ', "options": {}, "inputs": {}}',
        "deep options": '{"command": "text_to_image", "inputs": {}, "options": ' + '{"a": ' * 900 + "1" + "}" * 901,
        "number of a million digits": '{"command": ' + "9" * 1_000_000 + "}",
        "number of 4000 digits": '{"command": ' + "9" * 4000 + "}",
        "not a number": '{"command": NaN, "options": {}, "inputs": {}}',
        "infinite": '{"command": "text_to_image", "options": {"seed": 1e999}, "inputs": {}}',
        "half letters": '{"command": "\ud800", "options": {}, "inputs": {}}',
        "a million lists": "[" + "[]," * 1_000_000 + "[]]",
        "5 MB of text": json.dumps({"command": "x" * 5_000_000, "options": {}, "inputs": {}}),
        "a number": "5",
        "nothing": "",
    }.items():
        yield f"provenance: {name}", png(again(text))
