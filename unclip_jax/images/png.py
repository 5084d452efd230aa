"""PNG files and the text they carry.

(1)  signature, then chunks: length, kind, content, sum                     until IEND
(2)  tEXt: key 0 text;  zTXt: key 0 method deflated;  iTXt: key 0 is_deflated method language 0 key 0 text

Text is read without Pillow, which decodes the pixels for it; expanded, it has at most `MAX_TEXT_BYTES`.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write, check_writable
from unclip_jax.core.reading import MIB, check_regular

MAX_TEXT_BYTES = 32 * MIB
MAX_CHUNKS = 100_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def save_png(path: str | Path, image: UInt8[np.ndarray, "h w 3"], text: dict[str, str]) -> None:
    """Write a PNG that carries `text` (UTF-8 iTXt chunks, one per key); the file is written whole or not at all.

    Raises:
        UserError: if the name does not end in .png.
    """
    path = Path(path)
    _check_name(path)
    info = PngInfo()
    for key, value in text.items():
        # The bytes of a name of a file that is no Unicode stay as they are, escaped; in JSON that is what they mean.
        info.add_itxt(key, value.encode("utf-8", "backslashreplace").decode())
    with atomic_write(path) as draft:
        Image.fromarray(image).save(draft, format="PNG", pnginfo=info)


def check_png(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Make sure, before any work, that PNG files can be written; UserError where they cannot."""
    for path in paths:
        _check_name(path)
    check_writable(paths, overwrite=overwrite)


def _check_name(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise UserError(f"cannot write {path}; give a name that ends in .png")


def read_text(path: str | Path) -> dict[str, str]:
    """Read the text that a PNG carries, in file order; empty if none. No pixel is looked at.

    Raises:
        UserError: if the file is not there, no PNG, damaged, or its text goes beyond the bounds.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return dict(_texts(file))
    except FileNotFoundError as error:
        raise UserError(f"no file {path}; check the name") from error
    except (OSError, ValueError, zlib.error) as error:
        raise UserError(f"cannot read {path} as an image: {error}; give a whole PNG") from error


def _texts(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Yield equation (2): keys and texts of the chunks of (1)."""
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise ValueError("it is no PNG")
    left = MAX_TEXT_BYTES
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("it ends too early")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        content = file.read(min(length, left + 1))
        if len(content) > left:
            raise ValueError(f"it has over {MAX_TEXT_BYTES // MIB} MiB of text, the most that is read")
        if struct.pack(">I", zlib.crc32(kind + content)) != file.read(4):
            raise ValueError("its text is damaged")
        key, _, rest = content.partition(b"\0")
        text = _text(kind, rest, left)
        left -= len(text)
        yield key.decode("latin-1"), text.decode("latin-1" if kind != b"iTXt" else "utf-8", "replace")
    raise ValueError(f"it has over {MAX_CHUNKS:,} chunks, the most that are read")


def _text(kind: bytes, rest: bytes, limit: int) -> bytes:
    """Return the text of a chunk after its key, expanded to no more than `limit` bytes."""
    if kind == b"tEXt":
        return rest
    compressed, method, rest = (b"\1", rest[:1], rest[1:]) if kind == b"zTXt" else (rest[:1], rest[1:2], rest[2:])
    if kind == b"iTXt":  # language and translated key
        rest = rest.partition(b"\0")[2].partition(b"\0")[2]
    if compressed != b"\1":
        return rest
    if method != b"\0":
        raise ValueError("its text is compressed in an unknown way")
    expander = zlib.decompressobj()
    text = expander.decompress(rest, limit + 1)
    if len(text) > limit:
        raise ValueError(f"its text expands to over {MAX_TEXT_BYTES // MIB} MiB, the most that is read")
    if not expander.eof:
        raise ValueError("its text ends too early")
    return text
