"""Reads what `torch.save` wrote, without torch and without running anything that the file says.

Such a file is a zip archive: NAME/data.pkl, a pickle in which each tensor refers to a storage, and the storages as
NAME/data/0, NAME/data/1, ... The pickle may name tensors and dictionaries, and nothing else (`convert.pickles`).
Storages lie uncompressed in the archive and are mapped, so that one tensor at a time is in memory. TorchScript archives
(OpenAI's CLIP) are the same with modules in place of dictionaries.

A tensor has at most as many numbers as its storage, and `MAX_RANK` axes; there are at most `MAX_TENSORS`, `MAX_DEPTH`
deep, and `MAX_VISITS` values are looked at: a list that holds one list twice, which holds one list twice, and so on, is
few bytes and endless to walk.
"""

import dataclasses
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from unclip_jax.convert import pickles
from unclip_jax.convert.pickles import PickleError
from unclip_jax.core.archive import Archive, ArchiveError
from unclip_jax.core.errors import UserError
from unclip_jax.core.reading import MAX_DEPTH

MAX_RANK = 8
MAX_TENSORS = 100_000
MAX_VISITS = 300_000
MAX_NAME = 1_000
MAX_SIZE = 2**40
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


@dataclasses.dataclass
class _Module:
    """Stands for a TorchScript module: its attributes and nothing that could run."""

    state: object = None


class _Torch:
    """What names mean in a pickle of torch's; see `pickles.Meaning`."""

    def __init__(self, path: Path):
        self._path = path
        self._functions = {
            ("collections", "OrderedDict"): self._dictionary,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch", "Size"): self._size,
        }

    def named(self, module: str, name: str) -> object:
        if (module, name) in self._functions:
            return self._functions[module, name]
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module.startswith("__torch__"):
            return _Module
        raise UserError(
            f"{self._path} asks for {module}.{name}, which is no tensor; it may run code, so it is not read. "
            "Save its state_dict alone, or as safetensors"
        )

    def called(self, function: object, arguments: tuple[object, ...]) -> object:
        if function is _Module:
            return _Module()
        # Only what `named` has given out: a pickle may hold no function of another kind.
        if not callable(function) or function not in self._functions.values():
            raise PickleError("it calls what is no function")
        return function(*arguments)

    def with_state(self, value: object, state: object) -> None:
        if isinstance(value, _Module):
            value.state = state
        elif not isinstance(value, dict):  # a state_dict comes with the versions of its modules
            raise PickleError("it gives a state to what has none")

    def stored(self, reference: object) -> _Storage:
        match reference:
            case ("storage", np.dtype() as dtype, str() as key, str(), int() as length) if 0 <= length <= MAX_SIZE:
                return _Storage(key, dtype, length)
        raise UserError(f"{self._path} refers to something that is no storage; save it again with torch.save")

    def _dictionary(self, items: object = ()) -> dict[object, object]:
        if items != ():
            raise PickleError("it makes a dictionary of items")
        return {}

    def _size(self, sizes: object) -> tuple[int, ...]:
        if not isinstance(sizes, tuple | list) or len(sizes) > MAX_RANK or any(type(each) is not int for each in sizes):
            raise PickleError(f"a shape is none of at most {MAX_RANK} whole numbers")
        return tuple(sizes)

    def _tensor(self, storage: object, offset: object, shape: object, strides: object, *_: object) -> _Tensor:
        if not isinstance(storage, _Storage) or type(offset) is not int:
            raise PickleError("a tensor is made of something that is no storage")
        return _Tensor(storage, offset, self._size(shape), self._size(strides))

    def _parameter(self, data: object, *_: object) -> _Tensor:
        if not isinstance(data, _Tensor):
            raise PickleError("a parameter is made of something that is no tensor")
        return data


class TorchFile:
    """The tensors of a file by dotted name. `state_dict`, where there is one, is what counts.

    Raises UserError for a file that is truncated, is not of torch, or needs more than tensors.
    """

    def __init__(self, path: Path):
        self.path = path
        self._tensors: dict[str, _Tensor] = {}
        self._positions: dict[_Storage, int] = {}
        try:
            with Archive(path) as archive:
                found = [name for name in archive.names if name.endswith("/data.pkl")]
                if len(found) != 1:
                    raise UserError(f"{path} is no file of torch.save, it has no data.pkl; give a checkpoint")
                folder = found[0].removesuffix("data.pkl")
                order = f"{folder}byteorder"
                if order in archive.names and archive.size(order) != len("little"):
                    raise UserError(f"{path} was written on a big-endian machine; save it again on a common one")
                root = pickles.load(archive.read(found[0], pickles.MAX_BYTES), _Torch(path))
                if isinstance(root, dict) and isinstance(root.get("state_dict"), dict):
                    root = root["state_dict"]
                self._collect(root)
                for name, tensor in self._tensors.items():
                    if tensor.storage not in self._positions:
                        self._positions[tensor.storage] = self._position(archive, f"{folder}data/", name)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing; give a checkpoint") from error
        except (ArchiveError, OSError) as error:
            raise UserError(
                f"{path} is truncated or no zip archive ({error}); copy it again, or save it with torch 1.6 or later"
            ) from error
        except PickleError as error:
            raise UserError(f"{path} holds a pickle that cannot be read ({error}); copy it again") from error
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        storage = tensor.storage
        if not math.prod(tensor.shape):
            return np.zeros(tensor.shape, storage.dtype)
        flat = np.memmap(self.path, storage.dtype, "r", self._positions[storage], (storage.length,))
        strides = tuple(step * storage.dtype.itemsize for step in tensor.strides)
        return np.array(np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides))

    def _collect(self, root: object) -> None:
        """Find the tensors, in order."""
        left: list[tuple[str, int, object]] = [("", 0, root)]
        for _ in range(MAX_VISITS):
            if not left:
                return
            name, depth, value = left.pop()
            if isinstance(value, _Tensor):
                self._check(value, name)
                self._tensors[name] = value
                continue
            value = value.state if isinstance(value, _Module) else value
            if isinstance(value, dict | list | tuple):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                inside = [(f"{name}.{key}" if name else str(key), depth + 1, item) for key, item in items]
                if len(self._tensors) > MAX_TENSORS or depth > MAX_DEPTH or len(name) > MAX_NAME:
                    break
                left += reversed(inside)
        bounds = f"{MAX_TENSORS:,} tensors, {MAX_VISITS:,} values, {MAX_DEPTH} deep, with names of {MAX_NAME:,} letters"
        raise UserError(
            f"{self.path} holds a pickle that cannot be read (it is larger than {bounds}); save its state_dict alone"
        )

    def _check(self, tensor: _Tensor, name: str) -> None:
        """Refuse a view that no storage can give."""
        numbers = (tensor.offset, *tensor.shape, *tensor.strides)
        sound = len(tensor.shape) == len(tensor.strides) and min(numbers) >= 0 and max(numbers) <= MAX_SIZE
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=False))
        count = math.prod(tensor.shape)
        if not sound or (count and (last >= tensor.storage.length or count > tensor.storage.length)):
            raise UserError(f"{self.path}: tensor {name} reaches beyond its storage; copy the file again")

    def _position(self, archive: Archive, folder: str, name: str) -> int:
        """Return where the bytes of a tensor's storage begin in the file."""
        storage = self._tensors[name].storage
        member, length = f"{folder}{storage.key}", storage.length * storage.dtype.itemsize
        if member not in archive.names or archive.size(member) != length:
            raise UserError(f"{self.path}: the numbers of tensor {name} are missing or cut; copy the file again")
        if not archive.is_stored(member):
            raise UserError(f"{self.path} is compressed, which torch.save never does; save it again")
        return archive.position(member)
