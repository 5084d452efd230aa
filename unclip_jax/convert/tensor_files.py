"""Files of named tensors, read one tensor at a time: safetensors, sharded or not, and what `torch.save` wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from unclip_jax.bundle.safetensors_file import open_safetensors, read_tensor, shapes_in
from unclip_jax.convert.torch_file import TorchFile
from unclip_jax.core.errors import UserError
from unclip_jax.core.reading import parse_json, read_text
from unclip_jax.core.typing import JsonDict


@runtime_checkable
class Tensors(Protocol):
    """Named tensors in a file, or in several that belong together."""

    @property
    def path(self) -> Path:
        """Its name in errors."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape by name."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Read one tensor, as floating point numbers of its own width."""
        ...


class SafetensorsFile:
    """One safetensors file."""

    def __init__(self, path: Path):
        self.path = path
        with open_safetensors(self.path, "it") as file:
            self.shapes = shapes_in(file)

    def read(self, name: str) -> np.ndarray:
        with open_safetensors(self.path, "it") as file:
            return read_tensor(file, name, self.path)


class Shards:
    """The files that a Hugging Face index (`*.index.json`) names, as one."""

    def __init__(self, index: Path):
        self.path = index
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise UserError(f"{index} has no weight_map; copy it again")
        placed = {name: str(shard) for name, shard in weight_map.items()}
        files = {}
        for shard in sorted(set(placed.values())):
            if Path(shard).name != shard:
                raise UserError(f"{index} names a file outside its folder, {shard}; copy it again")
            files[shard] = open_file(index.parent / shard)
        self._home = {}
        self.shapes = {}
        for name, shard in placed.items():
            if name not in files[shard].shapes:
                raise UserError(f"{index.parent / shard}: tensor {name} is missing; copy it again")
            self._home[name] = files[shard]
            self.shapes[name] = files[shard].shapes[name]

    def read(self, name: str) -> np.ndarray:
        return self._home[name].read(name)


class Below:
    """The tensors of a file whose names begin with a prefix, called by what follows it."""

    def __init__(self, tensors: Tensors, prefix: str):
        self._tensors, self._prefix = tensors, prefix
        self.path = tensors.path
        self.shapes = {
            name.removeprefix(prefix): shape for name, shape in tensors.shapes.items() if name.startswith(prefix)
        }

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._prefix + name)


def open_file(path: Path) -> Tensors:
    """Open a file of weights by its name: *.safetensors, or *.bin, *.ckpt, *.pt, *.pth, *.th of torch."""
    if path.name.endswith(".index.json"):
        return Shards(path)
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def find_weights(folder: Path, stem: str) -> Tensors:
    """Find the weights of a model's folder, safetensors before torch's own: `stem` is "model" or "pytorch_model"."""
    stems = (stem, "pytorch_model") if stem == "model" else (stem,)
    names = [f"{each}{suffix}" for suffix in (".safetensors", ".safetensors.index.json") for each in stems]
    names += [f"{each}{suffix}" for suffix in (".bin", ".bin.index.json") for each in stems]
    for name in names:
        if (folder / name).is_file():
            return open_file(folder / name)
    raise UserError(f"{folder} holds no weights; expected {names[0]}, its index, or {names[-2]}")


def read_json(path: Path) -> JsonDict:
    """Read a JSON object from a file; UserError where there is none."""
    try:
        data = parse_json(read_text(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; give the folder of a model as it was downloaded") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); copy it again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object; copy it again")
    return data
