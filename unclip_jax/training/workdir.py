"""The folder of a run: local, or in a bucket (gs://bucket/folder, or whatever else etils.epath opens)."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etils import epath


def is_remote(path: str | epath.Path) -> bool:
    """Return whether `path` names objects in a bucket, which cannot be appended to nor renamed."""
    return "://" in str(path)


def open_folder(workdir: str | Path) -> epath.Path:
    """Return `workdir`, independent of the current folder."""
    return epath.Path(workdir) if is_remote(str(workdir)) else epath.Path(Path(workdir).absolute())


@contextmanager
def local(path: epath.Path) -> Iterator[Path]:
    """Yield a local path to write `path` at: itself, or a file that goes to the bucket at the end, in one piece."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        yield draft
        path.write_bytes(draft.read_bytes())
