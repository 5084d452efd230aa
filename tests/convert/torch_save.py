"""Writes files in the format of `torch.save`, without torch: a zip with a pickle of tensors and their storages."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
}


class Named:
    """Stands in a pickle for an object of that module and name."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self) -> None:
        raise AssertionError("only its name is ever used")


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Named, *arguments: Any, state: Any = None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return self.function, self.arguments, self.state


class Storage:
    def __init__(self, key: str, values: np.ndarray):
        self.key, self.values = key, values


class Pickler(pickle._Pickler):  # the C one cannot be taught new globals
    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_named(self, named: Named) -> None:
        self.write(pickle.GLOBAL + f"{named.module}\n{named.name}\n".encode())

    dispatch[Named] = save_named

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Storage):
            kind = Named("torch", STORAGES[obj.values.dtype])
            return "storage", kind, obj.key, "cpu", obj.values.size
        return None


def tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Call:
    """A view of a storage."""
    hooks = Call(Named("collections", "OrderedDict"))
    return Call(Named("torch._utils", "_rebuild_tensor_v2"), storage, offset, shape, strides, False, hooks)


def write_archive(path: Path, root: Any, storages: list[Storage], compression: int = zipfile.ZIP_STORED) -> None:
    """The archive itself."""
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(root)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{path.stem}/data.pkl", buffer.getvalue())
        archive.writestr(f"{path.stem}/byteorder", "little")
        for storage in storages:
            archive.writestr(f"{path.stem}/data/{storage.key}", storage.values.tobytes())


def torch_save(path: Path, arrays: Any) -> None:
    """A dict (nested, if wanted) or list of arrays, each with a storage of its own."""
    storages: list[Storage] = []

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(convert(item) for item in value)
        if not isinstance(value, np.ndarray):
            return value
        values = np.asarray(value, order="C")
        storages.append(Storage(str(len(storages)), values.reshape(-1)))
        strides = tuple(step // values.itemsize for step in values.strides)
        return tensor(storages[-1], 0, values.shape, strides)

    write_archive(path, convert(arrays), storages)
