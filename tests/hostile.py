"""Files made to do harm, by format: each is answered with a result or with a `UserError`, soon and in little memory.

What a format's own words can ask for, a size, a count, a depth, a length, is asked for here without measure.
"""

import io
import json
import math
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.convert.torch_save import Call, Named, Pickler, Storage, tensor

HUGE = 10**15
BOMB = 40_000_000
"""Bytes that a small file expands to."""
Files = dict[str, bytes]


# --- zip archives -----------------------------------------------------------------------------------------------------


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


# --- torch.save -------------------------------------------------------------------------------------------------------


def torch_file(root: Any, storages: tuple[Storage, ...] = ()) -> bytes:
    """What `torch.save` writes of it."""
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(root)
    return torch_pickle(buffer.getvalue(), storages)


def torch_pickle(code: bytes, storages: tuple[Storage, ...] = ()) -> bytes:
    """The same of a pickle by hand."""
    return archive(
        {"x/data.pkl": code, "x/byteorder": b"little"}
        | {f"x/data/{storage.key}": storage.values.tobytes() for storage in storages}
    )


def valid_torch() -> bytes:
    """A checkpoint of two tensors."""
    storages = Storage("0", np.arange(12, dtype=np.float32)), Storage("1", np.arange(3, dtype=np.float32))
    root = {"state_dict": {"a": tensor(storages[0], 0, (4, 3), (3, 1)), "b": tensor(storages[1], 0, (3,), (1,))}}
    return torch_file(root, storages)


class Sized(Storage):
    """A storage that says it is longer, or shorter."""

    def __init__(self, key: str, values: np.ndarray, size: int):
        super().__init__(key, values)
        self.values = _Lying(values, size)


class _Lying:
    def __init__(self, values: np.ndarray, size: int):
        self.dtype, self.size, self._values = values.dtype, size, values

    def tobytes(self) -> bytes:
        return self._values.tobytes()


def torch_cases() -> Iterator[tuple[str, bytes]]:
    """Torch files."""
    numbers = Storage("0", np.arange(4, dtype=np.float32))
    for name, (offset, shape, strides) in {
        "negative size": (0, (-1,), (1,)),
        "two negative sizes": (0, (-2, -2), (1, 1)),
        "size of 10^15": (0, (HUGE,), (0,)),
        "size of 2^63": (0, (2**63,), (0,)),
        "sizes that overflow": (0, (2**40, 2**40), (0, 0)),
        "size of nothing times 2^63": (0, (0, 2**63), (0, 0)),
        "stride of 0": (0, (2**33,), (0,)),
        "negative stride": (3, (4,), (-1,)),
        "stride of 2^62": (0, (2,), (2**62,)),
        "stride of 2^70": (0, (1,), (2**70,)),
        "negative offset": (-4, (4,), (1,)),
        "offset of 2^62": (2**62, (1,), (1,)),
        "offset of 2^70": (2**70, (1,), (1,)),
        "rank of 100": (0, (1,) * 100, (1,) * 100),
        "rank of 100,000": (0, (1,) * 100_000, (1,) * 100_000),
        "more strides than sizes": (0, (2,), (1, 1)),
        "sizes that are text": (0, ("9" * 100_000,), (1,)),
        "sizes that are a number": (0, 7, 7),
        "sizes that are fractions": (0, (1.5,), (1.5,)),
        "an infinite size": (0, (math.inf,), (1,)),
        "sizes that are nested": (0, ((1,),), ((1,),)),
        "offset that is text": ("0", (1,), (1,)),
    }.items():
        yield name, torch_file({"a": tensor(numbers, offset, shape, strides)}, (numbers,))
    for name, size in {"negative": -1, "zero": 0, "enormous": HUGE, "overflowing": 2**70}.items():
        storage = Sized("0", np.arange(4, dtype=np.float32), size)
        yield f"storage of {name} length", torch_file({"a": tensor(storage, 0, (4,), (1,))}, (storage,))
    far = Storage("../../../../etc/passwd", np.arange(4, dtype=np.float32))
    yield "storage with a path", torch_file({"a": tensor(far, 0, (4,), (1,))}, (numbers,))
    half = Storage("0", np.arange(2, dtype=np.float16))
    yield "storage of another type", torch_file({"a": tensor(numbers, 0, (4,), (1,))}, (half,))
    yield "no storage", torch_file({"a": Call(Named("torch._utils", "_rebuild_tensor_v2"), 1, 0, (1,), (1,))})
    yield "tensor of a tensor", torch_file({"a": Call(Named("torch._utils", "_rebuild_parameter"), 5)})
    yield "tensor without arguments", torch_file({"a": Call(Named("torch._utils", "_rebuild_tensor_v2"))})
    yield "no tensors", torch_file({})
    yield "a number", torch_file(5)
    yield "keys that are numbers", torch_file({3: tensor(numbers, 0, (4,), (1,)), None: 5, 1.5: 6}, (numbers,))
    yield "key of 1,000,000 letters", torch_file({"a" * 1_000_000: tensor(numbers, 0, (4,), (1,))}, (numbers,))
    yield "state that is no dictionary", torch_file(Call(Named("__torch__", "A"), state=5))
    yield "state of an object of no class", torch_file({"a": Call(Named("torch", "Size"), (1,), state={"x": 1})})
    yield "size of a long text", torch_file({"a": Call(Named("torch", "Size"), "x" * 1_000_000)})
    # A list of two references to a list of two references to ...: 2^n paths through n lists.
    laughs: Any = [1]
    for _ in range(60):
        laughs = [laughs, laughs]
    yield "nested references", torch_file(laughs)
    laughs = {"a": tensor(numbers, 0, (4,), (1,))}
    for _ in range(25):
        laughs = {"a": laughs, "b": laughs}
    yield "nested references to a tensor", torch_file(laughs, (numbers,))
    laughs = (1,)
    for _ in range(60):
        laughs = (laughs, laughs)
    yield "nested references as a key", torch_file(Call(Named("collections", "OrderedDict"), [[laughs, 1]]))
    yield "nested 400 deep", torch_pickle(b"\x80\x02" + b"}X\1\0\0\0a" * 400 + b"K\1" + b"s" * 400 + b".")
    loop: dict[str, Any] = {}
    loop["again"] = loop
    yield "contains itself", torch_file(loop)
    prologue = b"\x80\x02"
    yield "nested 100,000 deep", torch_pickle(prologue + b"]" * 100_000 + b"a" * 99_999 + b".")
    yield "memo of 2^31", torch_pickle(prologue + b"}r" + struct.pack("<I", 2**31 - 1) + b".")
    yield "memo of 2^29", torch_pickle(prologue + b"}r" + struct.pack("<I", 2**29) + b".")
    yield "memo that is not there", torch_pickle(prologue + b"j\x09\0\0\0.")
    yield "4 million dictionaries", torch_pickle(prologue + b"(" + b"}" * 4_000_000 + b"l.")
    yield "endless dictionaries", torch_pickle(prologue + b"(" + b"}" * BOMB + b"l.")
    yield "4 million duplicates", torch_pickle(prologue + b"}" + b"2" * 4_000_000 + b".")
    yield "text of 4 GB", torch_pickle(prologue + b"X\xff\xff\xff\xff.")
    yield "text of 2^62", torch_pickle(b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".")
    yield "bytes of 2^62", torch_pickle(b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".")
    yield "frame of 2^62", torch_pickle(b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".")
    yield "number of 2^31 digits", torch_pickle(prologue + b"\x8b\xff\xff\xff\x7f.")
    yield "number of a million digits", torch_pickle(prologue + b"I" + b"9" * 1_000_000 + b"\n.")
    yield (
        "number of a million bytes",
        torch_pickle(prologue + b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."),
    )
    yield "nothing on the stack", torch_pickle(prologue + b".")
    yield "no end", torch_pickle(prologue + b"}")
    yield "nothing", torch_pickle(b"")
    yield "mark that is missing", torch_pickle(prologue + b"]e.")
    yield "items in a number", torch_pickle(prologue + b"K\1(K\1K\1u.")
    yield "a class of pickle's own", torch_pickle(prologue + b"ccopyreg\n_reconstructor\n.")
    yield "a method of an allowed class", torch_pickle(b"\x80\x04\x8c\x0bcollections\x8c\x10OrderedDict.keys\x93.")
    yield "code", torch_file({"a": Call(Named("os", "system"), "true")})
    yield "code by its extension", torch_pickle(prologue + b"\x82\x01.")
    yield "a set", torch_pickle(pickle.dumps({1, 2}, 4))
    yield "NUL in a class", torch_pickle(prologue + b"cos\0\nsystem\n.")
    yield "text that is no text", torch_pickle(prologue + b"X\2\0\0\0\xff\xff.")
    yield from bent_archives(
        {"x/data.pkl": b"\x80\x02}.", "x/byteorder": b"little", "x/data/0": b"\0" * 16}, bomb="x/data.pkl"
    )
    for name, data in bent_archives({"x/data/0": b"\0" * 16, "x/data.pkl": _one_tensor()}, bomb="x/data/0"):
        yield f"storage: {name}", data
    yield "two pickles", archive({"x/data.pkl": b"\x80\x02}.", "y/data.pkl": b"\x80\x02}."})


def _one_tensor() -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"a": tensor(Storage("0", np.zeros(4, np.float32)), 0, (4,), (1,))})
    return buffer.getvalue()


# --- npz --------------------------------------------------------------------------------------------------------------


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


# --- PNG --------------------------------------------------------------------------------------------------------------


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


# --- JSON -------------------------------------------------------------------------------------------------------------


def json_cases() -> Iterator[tuple[str, bytes]]:
    """Texts in the place of a config.json."""
    yield "deep", b"[" * 100_000
    yield "deep and closed", b"[" * 900 + b"]" * 900
    yield "deep objects", b'{"a":' * 900 + b"1" + b"}" * 900
    yield "deep in a field", b'{"format": 2, "name": ' + b"[" * 900 + b"]" * 900 + b"}"
    yield "deep format", b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}"
    yield "number of a million digits", b'{"format": ' + b"9" * 1_000_000 + b"}"
    yield "number of 4000 digits", b'{"format": ' + b"9" * 4000 + b"}"
    yield "not a number", b'{"format": NaN}'
    yield "infinite", b'{"format": 1e999}'
    yield "half letters", b'{"format": "\\ud800"}'
    yield "not UTF-8", b'{"format": "\xff"}'
    yield "NUL", b"\0" * 100
    yield "a list", b"[]"
    yield "a number", b"5"
    yield "nothing", b""
    yield "endless lists", b"[" + b"[]," * (BOMB // 3) + b"[]]"
    yield "4 MB of lists", b"[" + b"[]," * 1_300_000 + b"[]]"
    yield "endless text", b'{"format": "' + b"x" * BOMB + b'"}'
    yield "300,000 fields", json.dumps({"format": 2, **{f"f{i}": i for i in range(300_000)}}).encode()
    yield "the same field a million times", b"{" + b'"format": 2, ' * 1_000_000 + b'"format": 2}'


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 7, 10**6, 10**9, HUGE, 2**63, 10**30, 10**400, 1.5, -1.5, 1e308, math.nan, math.inf,
    "", "x", "\ud800", "x" * 100_000, [], [1], [[]], [-1], [0, 0], [10**12] * 3, list(range(2000)), {}, {"a": 1},
    {"network": "unet"},
)  # fmt: skip
"""What is put in the place of a value."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """JSON with another value at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def without(value: Any, path: tuple[Any, ...]) -> Any:
    """JSON that lacks the value at a path."""
    copy = value.copy()
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = without(value[path[0]], path[1:])
    return copy


# --- safetensors ------------------------------------------------------------------------------------------------------


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


# --- captions of a folder ---------------------------------------------------------------------------------------------


def folder_cases() -> Iterator[tuple[str, Files]]:
    """What stands in a folder beside a.png."""
    row = b'{"file_name": "a.png", "text": "a red circle"}\n'
    for name, text in {
        "deep": b"[" * 100_000 + b"\n",
        "deep row": b'{"file_name": "a.png", "text": "x", "more": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        "deep text": b'{"file_name": "a.png", "text": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        "number of a million digits": b'{"file_name": "a.png", "text": "x", "size": ' + b"9" * 1_000_000 + b"}\n",
        "not a number": b'{"file_name": "a.png", "text": NaN}\n',
        "text without an end": b'{"file_name": "a.png", "text": "' + b"x" * BOMB + b'"}\n',
        "a line without an end": b"x" * BOMB,
        "row of a million lists": b'{"file_name": "a.png", "text": "x", "more": [' + b"[]," * 1_000_000 + b"[]]}\n",
        "a million rows of lists": b"[]\n" * 1_000_000,
        "name that leads out": b'{"file_name": "../../../../etc/passwd", "text": "x"}\n',
        "name with NUL": b'{"file_name": "a\\u0000.png", "text": "x"}\n',
        "half letters": b'{"file_name": "\\ud800.png", "text": "\\ud800"}\n',
        "not UTF-8": b"\xff\xfe\n",
        "a list": b"[]\n",
        "a null": b"null\n",
        "null text": b'{"file_name": "a.png", "text": null}\n',
    }.items():
        yield f"jsonl: {name}", {"metadata.jsonl": row + text}
    head = b"file_name,text\na.png,a red circle\n"
    for name, text in {
        "field of 1 MB": b"a.png," + b"x" * 1_000_000 + b"\n",
        "quote without an end": b'a.png,"' + b"x,\n" * 3_000_000,
        "a line without an end": b"x" * BOMB,
        "a million columns": b"a.png," * 1_000_000 + b"\n",
        "NUL": b"a.png,\0\n",
        "not UTF-8": b"a.png,\xff\n",
        "header alone": b"",
    }.items():
        yield f"csv: {name}", {"metadata.csv": head + text}
    yield "csv: nothing", {"metadata.csv": b""}
    yield "caption without an end", {"a.txt": b"x" * BOMB}
    yield "caption that is not UTF-8", {"a.txt": b"\xff"}
    yield "caption of nothing", {"a.txt": b""}


# --- mutations --------------------------------------------------------------------------------------------------------


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
