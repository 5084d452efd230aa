"""Files that are either whole or absent, and whether they may be written."""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unclip_jax.core.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder at, and rename that to `path` at the end.

    An existing `path` is replaced. Whatever goes wrong inside (a full disk, an interrupt), the half-written
    file or folder is removed and `path` is as it was. Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = f".{secrets.token_hex(4)}.tmp"
    draft, old = path.with_name(f".{path.name}{suffix}"), path.with_name(f".{path.name}.old{suffix}")
    try:
        yield draft
        if draft.is_dir() and path.exists():
            # A rename replaces a file but not a folder that holds something.
            os.rename(path, old)
            os.rename(draft, path)
        else:
            os.replace(draft, path)
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        _remove(draft)
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_free(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Raise UserError where a file cannot be written, or is there and not to be replaced."""
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file")
        if path.exists() and not overwrite:
            raise UserError(f"{path} is already there; give another --out, or replace it with --overwrite")
        for parent in path.parents:
            if parent.exists() and not parent.is_dir():
                raise UserError(f"{parent} is a file, so nothing can be written into it; give another --out")
