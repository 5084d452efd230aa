"""Opens safetensors files, and writes them one tensor at a time, so that a model larger than memory can be stored.

8 bytes         length of the header, little-endian
header          JSON: {name: {"dtype", "shape", "data_offsets"}}, padded with spaces to a multiple of 8
numbers         one tensor after another, row by row
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from unclip_jax.core.errors import UserError
from unclip_jax.core.reading import MIB, check_regular, parse_json
from unclip_jax.core.typing import HasShape

MAX_HEADER, MAX_TENSORS = 4 * MIB, 10_000
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def open_safetensors(path: Path, owner: str) -> safe_open:
    """Open the library's reader; UserError if the file of that `owner` ("the bundle") is missing or damaged, or its
    header goes beyond `MAX_HEADER` and `MAX_TENSORS`."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length:,} bytes; at most {MAX_HEADER:,} are read")
            header = parse_json(file.read(length).decode())
        # The library takes longer for each tensor the more there are.
        if isinstance(header, dict) and len(header) > MAX_TENSORS:
            raise ValueError(f"{len(header):,} tensors; at most {MAX_TENSORS:,} are read")
        return safe_open(path, framework="np")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; copy {owner} again") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); copy {owner} again") from error


def read_tensor(file: safe_open, name: str, path: Path) -> np.ndarray:
    """Read a tensor of an open file; UserError for one that no array can hold: of another type, or too many axes."""
    try:
        return file.get_tensor(name)
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: tensor {name} cannot be read ({error}); store it as float32") from error


def shapes_in(file: safe_open) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of an open file, by name."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # pyright: ignore[reportAttributeAccessIssue]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor on its way to disk: `value` is read once.

    `name` is what errors call it.
    """

    dtype: np.dtype
    value: HasShape
    name: str = "a tensor"

    def numbers(self) -> np.ndarray:
        """Return the array in its stored dtype; UserError where a number is not finite, or too large for it."""
        value = np.asarray(self.value)
        with np.errstate(over="ignore"):
            stored = value.astype(self.dtype, order="C", copy=False)
        if not np.isfinite(stored).all():
            if np.isfinite(value).all():
                raise UserError(f"{self.name} does not fit in {self.dtype.name}; store it as bfloat16")
            raise UserError(f"{self.name} is not finite; take other weights, those of an earlier checkpoint")
        return stored


def write_safetensors(
    path: Path, tensors: Mapping[str, Stored], framework: str = "np", about: Mapping[str, str] | None = None
) -> None:
    """Write the file; removing a partial one is left to the caller.

    Args:
        framework: what the header says of who reads it; transformers insists on "pt".
        about: what it says besides.
    """
    header: dict[str, object] = {"__metadata__": {"format": framework, **(about or {})}}
    end = 0
    # Wide numbers first, as the format's own library does, so that each tensor begins at a multiple of its width.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        stored, start = tensors[name], end
        shape = list(stored.value.shape)
        end += math.prod(shape) * stored.dtype.itemsize
        header[name] = {"dtype": _NAMES[stored.dtype.name], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            numbers = tensors[name].numbers()
            assert numbers.shape == tuple(tensors[name].value.shape), name
            numbers.tofile(file)
