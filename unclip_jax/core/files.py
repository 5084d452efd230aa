"""Files that are either whole or absent.

What will be written is tried before anything is computed (`check_writable`), and what then cannot be written after all
is kept elsewhere (`write_all`).
"""

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unclip_jax.core.errors import UserError


def cache_folder() -> Path:
    """Return the folder in the user's cache for what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # A user without a home, as in containers, keeps its tilde.
    return Path(tempfile.gettempdir() if home.startswith("~") else home) / "unclip_jax"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder at, and rename that to `path` at the end.

    An existing `path` is replaced. Whatever goes wrong inside (a full disk, an interrupt), the half-written
    file or folder is removed and `path` is as it was. Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, old = _beside(path), _beside(path)
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


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")


def check_writable(paths: Sequence[Path], *, overwrite: bool, option: str = "--out") -> None:
    """Make sure, before any work, that files can be written at `paths`: by writing there. Nothing is left behind.

    Raises UserError, which names the `option` to change, where a name cannot be, a folder cannot be made or written
    into, or something is in the way.
    """
    for path in paths:
        if _kind(path) == stat.S_IFDIR:
            raise UserError(f"{path} is a folder; give the name of a file")
        if _kind(path) is not None and not overwrite:
            raise UserError(f"{path} is already there; give another {option}, or replace it with --overwrite")
        if _kind(path) not in (None, stat.S_IFREG, stat.S_IFLNK):
            raise UserError(f"{path} is no file that could be replaced; give another {option}")
        try_writing(path, option)


def _touch(path: Path) -> None:
    """Make an empty file where there is nothing, and remove it."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    path.unlink()


def try_writing(path: Path, option: str = "--out") -> None:
    """Make a file at `path`, or beside what is there, and its missing folders; remove them again.

    Raises UserError, which names the `option` to change, where that cannot be.
    """
    made: list[Path] = []
    try:
        missing = [parent for parent in path.parents if not os.path.lexists(parent)]
        for parent in reversed(missing):
            parent.mkdir()
            made.append(parent)
        try:
            _touch(path)
        except FileExistsError:  # or another process is trying
            _touch(_beside(path))
    except (OSError, ValueError) as error:
        in_the_way = next((parent for parent in path.parents if _kind(parent) not in (None, stat.S_IFDIR)), None)
        if in_the_way is not None and not os.path.isdir(in_the_way):
            found = f"{in_the_way} is a file, so nothing can be written into it; give another {option}"
            raise UserError(found) from error
        raise UserError(f"{path} cannot be written ({_reason(error)}); give another {option}") from error
    finally:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()


def write_all(files: Iterable[tuple[Path, Callable[[Path], object]]]) -> list[Path]:
    """Write files, each by a function of its name that writes it whole or not at all, and return their names.

    What cannot be written where it belongs, since the disk is full or the folder is gone, is not lost: from there on
    all are written into a new temporary folder.

    Raises:
        UserError: some are in that folder; or nowhere, if it cannot be written either.
    """
    written: list[Path] = []
    refuge, problem = None, ""
    for path, write in files:
        if refuge is None:
            try:
                write(path)
                written.append(path)
                continue
            except OSError as error:
                problem = f"{path} cannot be written ({_reason(error)})"
        try:
            refuge = refuge or Path(tempfile.mkdtemp(prefix="unclip_jax-"))
            write(refuge / path.name)
        except OSError as error:
            lost = f"{problem}, nor can the temporary folder ({_reason(error)})"
            raise UserError(f"{lost}; set TMPDIR to one that can, and run it again") from error
    if refuge is not None:
        kept = f"; {len(written)} before it are where they belong" if written else ""
        raise UserError(f"{problem}; what was made is in {refuge}, move it from there{kept}")
    return written


def _kind(path: Path) -> int | None:
    """Return the type of what is at `path`, a link as such; None where nothing is, or could be."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return None


def _beside(path: Path) -> Path:
    """Return a name for a draft of `path` that is as good in that folder: short, and no one's."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
