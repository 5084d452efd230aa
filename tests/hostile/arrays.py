"""Archives of arrays, and safetensors."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.hostile import BOMB, HUGE
from tests.hostile.archives import archive, bent_archives


def npy(header: str | bytes, content: bytes = b"", version: int = 1) -> bytes:
    """An .npy with that header."""
    text = header.encode() if isinstance(header, str) else header
    size = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + b"\n" + content


def described(shape: object, descr: object = "<f4", order: object = False) -> str:
    """A header."""
    return repr({"descr": descr, "fortran_order": order, "shape": shape})


def array_bytes(array: np.ndarray) -> bytes:
    """An .npy as numpy writes it."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def valid_npz() -> bytes:
    """Embeddings as the commands write them."""
    z_i = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    return archive({"z_i.npy": array_bytes(z_i), "prompts.npy": array_bytes(np.array(["a", "b c"]))})


def npz_cases() -> Iterator[tuple[str, bytes]]:
    """Archives of arrays with z_i [n 4] and prompts [n]."""
    eight = np.zeros(8, np.float32).tobytes()
    prompts = array_bytes(np.array(["a", "b"]))
    for name, array in {
        "shape of 10^15": npy(described((HUGE, 4)), eight),
        "shape of 10^9": npy(described((10**9, 4)), eight),
        "shape of 2^63": npy(described((2**63, 4)), eight),
        "shape that overflows to 8": npy(described((2**62, 4)), eight),
        "negative shape": npy(described((-2, -4)), eight),
        "shape of 2 x -1": npy(described((2, -1)), eight),
        "more numbers than it says": npy(described((1, 4)), eight * 1000),
        "fewer numbers than it says": npy(described((3, 4)), eight),
        "shape of truths": npy(described((True, 4)), eight),
        "shape that is a number": npy(described(8), eight),
        "shape of fractions": npy(described((2.0, 4)), eight),
        "rank of 100": npy(described((1,) * 98 + (2, 4)), eight),
        "objects": npy(described((2, 4), "|O"), eight),
        "texts of no letters": npy(described((2, 4), "<U0"), b""),
        "10^9 texts of no letters": npy(described((10**9,), "<U0"), b""),
        "numbers of no bytes": npy(described((10**9, 4), "|V0"), b""),
        "letters of 2^31": npy(described((2, 4), "<U2147483647"), eight),
        "arrays in arrays": npy(described((2,), ("<f4", (4,))), eight),
        "enormous arrays in arrays": npy(described((2,), ("<f4", (10**9, 10**9))), eight),
        "records": npy(described((2, 4), [("a", "<f4")]), eight),
        "times": npy(described((2, 4), "<M8[us]"), eight * 2),
        "an unknown type": npy(described((2, 4), "<q9"), eight),
        "type that is a number": npy(described((2, 4), 5), eight),
        "type that is code": npy(described((2, 4), "__import__('os').system('true')"), eight),
        "order that is text": npy(described((2, 4), order="yes"), eight),
        "header without a key": npy("{'descr': '<f4', 'shape': (2, 4)}", eight),
        "header that is code": npy("__import__('os').system('true')", eight),
        "header that is nested": npy("(" * 5000 + ")" * 5000, eight),
        "header of minus signs": npy("-" * 9000 + "1", eight),
        "header of brackets without an end": npy("[" * 9000, eight),
        "header that is no text": npy(b"\xff" * 60, eight),
        "header with NUL": npy("{'a': 1\0}", eight),
        "header of a large product": npy(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (9" + "9" * 5000 + ",)}", eight
        ),
        "header of 60,000 letters": npy(described((2, 4)) + " " * 60_000, eight),
        "header of 4 GB": b"\x93NUMPY\x02\0\xff\xff\xff\xff" + eight,
        "version 9": npy(described((2, 4)), eight, version=9),
        "version 3 with a structure": npy(described((2, 4), [("ü", "<f4")]), eight, version=3),
        "no array": eight,
        "nothing": b"",
        "not a number": npy(described((2, 4)), np.full(8, np.nan, np.float32).tobytes()),
        "a bomb of zeros": npy(described((BOMB // 16, 4)), bytes(BOMB)),
    }.items():
        compression = zipfile.ZIP_DEFLATED if len(array) > 10**6 else zipfile.ZIP_STORED
        yield name, archive({"z_i.npy": array, "prompts.npy": prompts}, compression)
    z_i = array_bytes(np.zeros((2, 4), np.float32))
    for name, texts in {
        "10^7 texts": npy(described((10**7,), "<U1"), bytes(4 * 10**7)),
        "text of 10^7 letters": npy(described((1,), "<U10000000"), b"a\0\0\0" * 10**7),
        "letters that are none": npy(described((2,), "<U1"), b"\xff\xff\xff\x7f" * 2),
        "half letters": npy(described((2,), "<U1"), struct.pack("<II", 0xD800, 0xDC00)),
        "texts in a square": npy(described((1, 2), "<U1"), b"a\0\0\0" * 2),
    }.items():
        yield name, archive({"z_i.npy": z_i, "prompts.npy": texts}, zipfile.ZIP_DEFLATED)
    yield from bent_archives({"z_i.npy": z_i, "prompts.npy": prompts}, bomb="z_i.npy")
    yield "a lone array", z_i
    yield "a pickle", pickle.dumps([1])
    yield "no arrays", archive({"readme.txt": b""})
    yield "nothing at all", b""


def safetensors(header: bytes | dict[str, Any], content: bytes = b"", length: int | None = None) -> bytes:
    """A file with that header."""
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def entry(shape: Any, dtype: Any = "F32", offsets: Any = (0, 16)) -> dict[str, Any]:
    """An entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def valid_safetensors() -> bytes:
    """Two tensors."""
    header = {"a": entry([4]), "b": entry([2, 2], offsets=[16, 32]), "__metadata__": {"format": "np"}}
    return safetensors(header, np.arange(8, dtype=np.float32).tobytes())


def safetensors_cases() -> Iterator[tuple[str, bytes]]:
    """Files of tensors."""
    four = np.arange(4, dtype=np.float32).tobytes()
    for name, one in {
        "shape of 10^15": entry([HUGE]),
        "shape of 2^64": entry([2**64]),
        "shape that overflows to 4": entry([2**62 + 1, 4]),
        "negative shape": entry([-4]),
        "nothing times 2^63": entry([0, 2**63], offsets=[0, 0]),
        "rank of 100": entry([1] * 99 + [4]),
        "rank of 100,000": entry([1] * 100_000 + [4]),
        "shape of text": entry("4"),
        "shape of fractions": entry([4.0]),
        "offsets beyond the end": entry([4], offsets=[16, 32]),
        "offsets backwards": entry([4], offsets=[16, 0]),
        "offsets of 2^63": entry([4], offsets=[2**63, 2**63 + 16]),
        "negative offsets": entry([4], offsets=[-16, 0]),
        "bfloat16": entry([8], "BF16"),
        "float8": entry([16], "F8_E4M3"),
        "float4": entry([32], "F4"),
        "float8 of scales": entry([16], "F8_E8M0"),
        "complex": entry([2], "C64"),
        "truths": entry([16], "BOOL"),
        "unknown type": entry([4], "F99"),
        "type that is a number": entry([4], 5),
    }.items():
        yield name, safetensors({"a": one}, four)
    yield "header of 2^63", safetensors(b"{}", length=2**63)
    yield "header of 10^8", safetensors(b"{}", length=10**8)
    yield "header beyond the end", safetensors(b"{}", length=100)
    yield "header of nothing", safetensors(b"")
    yield "header that is nested", safetensors(b"[" * 100_000)
    yield "endless header", safetensors(b'{"__metadata__": {"x": "' + b"x" * BOMB + b'"}}')
    yield (
        "header of 60,000 entries",
        safetensors(
            b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(60_000)) + b"}"
        ),
    )
    yield "metadata that is a number", safetensors({"__metadata__": 5, "a": entry([4])}, four)
    yield "a hole in the numbers", safetensors({"a": entry([4], offsets=[16, 32])}, four * 2)
    yield "two tensors in one place", safetensors({"a": entry([4]), "b": entry([4])}, four)
    yield "name of a million letters", safetensors({"a" * 1_000_000: entry([4])}, four)
    yield "no bytes", b""
    yield "seven bytes", b"1234567"
