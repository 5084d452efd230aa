"""Reading .npz files that may come from anywhere, and writing them whole.

An array is as long as its header says and the archive agrees; `MAX_TEXTS` texts at most, axes `MAX_RANK`.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import EllipsisType

import numpy as np
from jaxtyping import Float

from unclip_jax.core.archive import Archive, read_exactly
from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write

MAX_TEXTS = 100_000
MAX_RANK = 8
Shape = tuple[int | str | EllipsisType, ...]
"""Sizes; a word stands for one that is the same wherever the word is, and ... at the end for axes that are the same
wherever it is."""


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz that is either whole or absent."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    with atomic_write(path) as draft:
        draft.write_bytes(buffer.getvalue())


def read_npz(
    path: Path, shapes: Mapping[str, Shape], texts: Sequence[str] = (), optional: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Read arrays of finite float32 numbers and lists of texts from an .npz.

    Args:
        shapes: of the arrays.
        texts: names of the lists; a lone text comes as a list of one.
        optional: names, of either, that may be missing.

    Raises:
        UserError: the file cannot be read, or is another.
    """
    sizes: dict[str, int] = {}
    rest: list[tuple[int, ...]] = []
    arrays, lists = {}, {}
    try:
        with Archive(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.names}
            for name in [*shapes, *texts]:
                if name not in members:
                    if name in optional:
                        continue
                    has = ", ".join(list(members)[:MAX_RANK]) or "nothing"
                    raise UserError(f"{path} has no {name}, only {has}; give a file that has it")
                array = _array(archive, members[name])
                if name in shapes:
                    arrays[name] = _checked(path, name, array, _spelt(shapes[name], array.shape, rest), sizes)
                elif array.dtype.kind != "U" or array.ndim > 1 or array.size > MAX_TEXTS:
                    raise UserError(
                        f"{path}: {name} is no list of at most {MAX_TEXTS:,} texts; give a file that has one"
                    )
                else:
                    lists[name] = _texts(name, array)
    except FileNotFoundError as error:
        raise UserError(f"no file {path}; check the name") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no .npz that can be read ({error}); give another file") from error
    return arrays, lists


def _array(archive: Archive, member: str) -> np.ndarray:
    """Read a member, once its header and its length are known to agree."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    size = archive.size(member)
    with archive.open(member) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            shape, by_column, dtype = readers[version](stream)
        except Exception as error:  # numpy lets Python parse the header, which raises almost anything
            raise ValueError(f"{member} has no header of an array: {type(error).__name__}") from error
        length = size - stream.tell()
        if dtype.kind not in "biufcSU" or not dtype.itemsize or len(shape) > MAX_RANK or min(shape, default=0) < 0:
            raise ValueError(
                f"{member} is to hold {str(dtype)[:40]} of {len(shape)} axes; numbers or texts of 8 are read"
            )
        if math.prod(shape) * dtype.itemsize != length:
            raise ValueError(
                f"{member} has {length:,} bytes, and its header says {math.prod(shape) * dtype.itemsize:,}"
            )
        flat = np.frombuffer(read_exactly(stream, length), dtype)
    return flat.reshape(shape[::-1]).T if by_column else flat.reshape(shape)


def _texts(name: str, array: np.ndarray) -> list[str]:
    letters = array.reshape(-1).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    if ((letters > 0x10FFFF) | ((letters >= 0xD800) & (letters < 0xE000))).any():
        raise ValueError(f"{name} holds texts that are no Unicode")
    return array.reshape(-1).tolist()


def _spelt(want: Shape, found: tuple[int, ...], rest: list[tuple[int, ...]]) -> tuple[int | str, ...]:
    """Return `want` with the axes that its ... stands for, which the first array that has one decides."""
    named = tuple(size for size in want if not isinstance(size, EllipsisType))
    if len(named) == len(want):
        return named
    if not rest:
        rest.append(found[len(named) :])
    return (*named, *rest[0])


def _checked(
    path: Path, name: str, array: np.ndarray, shape: tuple[int | str, ...], sizes: dict[str, int]
) -> Float[np.ndarray, "..."]:
    fits = array.ndim == len(shape) and all(
        size == (sizes.setdefault(want, size) if isinstance(want, str) else want)
        for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind != "f" or 0 in array.shape:
        found = f"{array.dtype} of shape ({', '.join(map(str, array.shape))})"
        raise UserError(f"{path}: {name} is {found}; numbers of shape ({', '.join(map(str, shape))}) are needed")
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {name} holds numbers that are not finite; make the file again")
    return array.astype(np.float32, copy=False)
