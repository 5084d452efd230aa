"""Reads what `torch.save` wrote, without torch and without running anything that the file says.

Such a file is a zip archive: NAME/data.pkl, a pickle in which each tensor refers to a storage, and the storages as
NAME/data/0, NAME/data/1, ... Unpickling runs whatever functions a pickle names; here it may name tensors and
dictionaries, and nothing else. Storages lie uncompressed in the archive and are mapped, so that one tensor at a time
is in memory. TorchScript archives (OpenAI's CLIP) are the same with modules in place of dictionaries.
"""

import collections
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

from unclip_jax.core.errors import UserError

MAX_PICKLE_BYTES = 256 * 2**20
_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
# What the pickle module raises when it is given something else than a pickle, and ours for one that contains itself.
_UNREADABLE = (
    pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, KeyError, IndexError, RecursionError,
)  # fmt: skip
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    length: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module:
    """Stands for a TorchScript module: its attributes and nothing that could run."""

    def __setstate__(self, state: dict[str, object]) -> None:
        self.state = state


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: Iterable[int], strides: Iterable[int], *_: object
) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(data: _Tensor, *_: object) -> _Tensor:
    return data


class _TensorsOnly(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, path: Path):
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("torch", "Size"): tuple,
        }
        if (module, name) in allowed:
            return allowed[module, name]
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module.startswith("__torch__"):
            return _Module
        raise UserError(
            f"{self._path} asks for {module}.{name}, which is no tensor; it may run code, so it is not read. "
            "Save its state_dict alone, or as safetensors"
        )

    def persistent_load(self, pid: object) -> _Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str() as key, str(), int() as length):
                return _Storage(key, dtype, length)
        raise UserError(f"{self._path} refers to something that is no storage; save it again with torch.save")


class TorchFile:
    """The tensors of a file by dotted name. `state_dict`, where there is one, is what counts.

    Raises UserError for a file that is truncated, is not of torch, or needs more than tensors.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                if len(pickles) != 1:
                    raise UserError(f"{path} is no file of torch.save, it has no data.pkl; give a checkpoint")
                if archive.getinfo(pickles[0]).file_size > MAX_PICKLE_BYTES:
                    raise UserError(f"{path} has a pickle of over 256 MiB, which no state_dict needs; it is not read")
                root = _TensorsOnly(io.BytesIO(archive.read(pickles[0])), path).load()
                if isinstance(root, dict) and isinstance(root.get("state_dict"), dict):
                    root = root["state_dict"]
                self._tensors: dict[str, _Tensor] = {}
                self._collect(root, "")
                self._infos = {info.filename: info for info in archive.infolist()}
            self._data = pickles[0].removesuffix("data.pkl") + "data/"
            order = self._infos.get(pickles[0].removesuffix("data.pkl") + "byteorder")
            if order is not None and order.file_size != len("little"):
                raise UserError(f"{path} was written on a big-endian machine; save it again on a common one")
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing; give a checkpoint") from error
        except zipfile.BadZipFile as error:
            raise UserError(
                f"{path} is truncated or no zip archive ({error}); copy it again, or save it with torch 1.6 or later"
            ) from error
        except _UNREADABLE as error:
            raise UserError(f"{path} holds a pickle that cannot be read ({error}); copy it again") from error
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        storage = tensor.storage
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
        inside = tensor.offset >= 0 and min(tensor.strides, default=0) >= 0 and last < storage.length
        size = math.prod(tensor.shape)
        if size and not inside:
            raise UserError(f"{self.path}: tensor {name} reaches beyond its storage; copy the file again")
        if not size:
            return np.zeros(tensor.shape, storage.dtype)
        flat = np.memmap(self.path, storage.dtype, "r", self._position(name, storage), (storage.length,))
        strides = tuple(step * storage.dtype.itemsize for step in tensor.strides)
        return np.array(np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides))

    def _collect(self, value: object, name: str) -> None:
        if isinstance(value, _Tensor):
            self._tensors[name] = value
        elif isinstance(value, _Module):
            self._collect(value.state, name)
        elif isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                self._collect(item, f"{name}.{key}" if name else str(key))

    def _position(self, name: str, storage: _Storage) -> int:
        """Return where the storage's bytes begin in the file; a zip's table has only that of its local header."""
        info = self._infos.get(self._data + storage.key)
        if info is None or info.file_size != storage.length * storage.dtype.itemsize:
            raise UserError(f"{self.path}: the numbers of tensor {name} are missing or cut; copy the file again")
        if info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{self.path} is compressed, which torch.save never does; save it again")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size:
            raise UserError(f"{self.path} is truncated; copy it again")
        magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if magic != b"PK\x03\x04":
            raise UserError(f"{self.path} is damaged; copy it again")
        return info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
