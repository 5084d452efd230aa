"""Reading .npz files that may come from anywhere, and writing them whole."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz that is either whole or absent."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    with atomic_write(path) as draft:
        draft.write_bytes(buffer.getvalue())


def read_npz(
    path: Path, shapes: dict[str, tuple[int | str, ...]], texts: Sequence[str] = (), optional: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Read arrays of finite float32 numbers and lists of texts from an .npz.

    Args:
        shapes: of the arrays; a word stands for a size that is the same wherever the word is.
        texts: names of the lists; a lone text comes as a list of one.
        optional: names, of either, that may be missing.

    Raises:
        UserError: the file cannot be read, or is another.
    """
    sizes: dict[str, int] = {}
    arrays, lists = {}, {}
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a lone array")
            for name in [*shapes, *texts]:
                if name not in file.files:
                    if name in optional:
                        continue
                    has = ", ".join(file.files) or "nothing"
                    raise UserError(f"{path} has no {name}, only {has}; give a file that has it")
                array = file[name]
                if name in shapes:
                    arrays[name] = _checked(path, name, array, shapes[name], sizes)
                elif array.dtype.kind != "U" or array.ndim > 1:
                    raise UserError(f"{path}: {name} is no list of texts; give a file that has one")
                else:
                    lists[name] = array.reshape(-1).tolist()
    except FileNotFoundError as error:
        raise UserError(f"no file {path}; check the name") from error
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no .npz that can be read ({error}); give another file") from error
    return arrays, lists


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
    return array.astype(np.float32)
