"""What `torch.save` might have written."""

import io
import math
import pickle
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.convert.torch_save import Call, Named, Pickler, Storage, tensor
from tests.hostile import BOMB, HUGE
from tests.hostile.archives import archive, bent_archives


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
