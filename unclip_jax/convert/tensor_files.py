"""Files of named tensors, read one tensor at a time: safetensors, sharded or not, and what `torch.save` wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from unclip_jax.bundle.safetensors_file import open_safetensors, read_tensor, shapes_in
from unclip_jax.convert.torch_file import TorchFile
from unclip_jax.core.errors import UserError
from unclip_jax.core.reading import parse_json, read_text
from unclip_jax.core.typing import JsonDict

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
HALF = ("fp16", "bf16")
"""Variants of files that are the same weights with fewer bits."""


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
        for shard, file in files.items():
            for name in file.shapes:
                if placed.get(name) != shard:
                    raise UserError(f"{index.parent / shard}: tensor {name} is not in {index.name}; copy both again")
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
    """Open a file of weights by its name: *.safetensors, or *.bin, *.ckpt, *.pt, *.pth, *.th of torch.

    What wrappers of a model put before the names of all its tensors is taken off.
    """
    tensors: Tensors
    if path.suffix == ".json":
        tensors = Shards(path)
    else:
        tensors = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
    prefix = _wrapped(list(tensors.shapes))
    return Below(tensors, prefix) if prefix else tensors


def _wrapped(names: Sequence[str]) -> str:
    """Return what wrappers put before all names."""
    prefix = ""
    while names:
        more = next((each for each in WRAPPERS if all(name.startswith(prefix + each) for name in names)), None)
        if more is None:
            break
        prefix += more
    return prefix


def find_weights(folder: Path, stem: str) -> Tensors:
    """Find the weights of a model's folder: safetensors before torch's own, full precision before half.

    Args:
        stem: "model", which torch's own files call "pytorch_model", or another.

    Raises UserError where there are none, or only half precisions of two kinds.
    """
    stems = (stem, "pytorch_model") if stem == "model" else (stem,)
    found = _find(folder, stems, "")
    if not found:
        halves = {variant: path for variant in HALF if (path := _find(folder, stems, f".{variant}"))}
        if len(halves) > 1:
            raise UserError(f"{folder} holds weights as {' and as '.join(halves)}; leave one of them there")
        found = next(iter(halves.values()), None)
    if found:
        return open_file(found)
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".ckpt", ".pt"))
    there = f", only {', '.join(others[:3])}" if others else ""
    raise UserError(f"{folder} holds no weights called {stem}.safetensors or {stems[-1]}.bin{there}; copy it again")


def _find(folder: Path, stems: Sequence[str], variant: str) -> Path | None:
    """Return the first file of weights, or index, of a variant, "" or ".fp16"."""
    for suffix in (".safetensors", ".bin"):
        for each in stems:
            for name in (
                f"{each}{variant}{suffix}",
                f"{each}{variant}{suffix}.index.json",
                f"{each}{suffix}.index{variant}.json",
            ):
                if (folder / name).is_file():
                    return folder / name
    return None


def read_json(path: Path) -> JsonDict:
    """Read a JSON object from a file; UserError where there is none."""
    try:
        data = parse_json(read_text(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; give the folder of a model as it was downloaded") from error
    except NotADirectoryError as error:
        raise UserError(f"{path.parent} is a file; give the folder of a model as it was downloaded") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); copy it again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object; copy it again")
    return data
