"""What will be written is tried first, and what cannot be written in the end is kept."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import check_writable, try_writing, write_all, write_text


def test_trying_leaves_nothing_behind(tmp_path):
    check_writable([tmp_path / "a" / "b" / "x.png", tmp_path / "a" / "y.png"], overwrite=False)
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "x.png"
    path.write_text("mine")
    check_writable([path], overwrite=True)
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "mine"
    # The longest name that a folder takes, and one that is no UTF-8.
    for name in ("x" * 251 + ".png", os.fsdecode(b"\xff.png")):
        check_writable([tmp_path / name], overwrite=False)
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x" * 252 + ".png", r"cannot be written \(File name too long\)"),
        ("x\0.png", r"cannot be written \(embedded null byte\)"),
        ("\ud800.png", "cannot be written"),
        ("folder", "is a folder; give the name of a file"),
        ("file", "is already there; give another --out, or replace it with --overwrite"),
        ("file/x.png", "file is a file, so nothing can be written into it"),
        ("nowhere", "nowhere is already there"),
    ],
)
def test_names_that_cannot_be_written(tmp_path, name, line):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    with pytest.raises(UserError, match=line):
        check_writable([tmp_path / name], overwrite=False)
    assert len(list(tmp_path.iterdir())) == 3


def test_pipes_and_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError, match="is no file that could be replaced"):
            check_writable([path], overwrite=True)


def test_a_folder_that_cannot_be_written_into(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"x.png cannot be written \(Permission denied\)"):
        try_writing(tmp_path / "new" / "x.png")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def refuge(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_what_cannot_be_written_in_the_end_is_kept(tmp_path, refuge):
    """The second of three, as when the disk is full; the first stays where it is."""
    out = tmp_path / "out"

    def write(path: Path) -> None:
        if path == out / "b.txt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_text(path, path.stem)

    with pytest.raises(
        UserError, match=r"b.txt cannot be written \(No space left on device\); what was made is in"
    ) as error:
        write_all((out / f"{name}.txt", write) for name in "abc")
    assert (out / "a.txt").read_text() == "a" and [path.name for path in out.iterdir()] == ["a.txt"]
    (kept,) = refuge.iterdir()
    assert str(kept) in str(error.value)
    assert {path.name: path.read_text() for path in kept.iterdir()} == {"b.txt": "b", "c.txt": "c"}


def test_nowhere_to_keep_it(tmp_path, refuge):
    def write(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="nor can the temporary folder"):
        write_all([(tmp_path / "x", write)])


def test_a_folder_that_has_gone_is_made_again(tmp_path):
    assert write_all([(tmp_path / "gone" / "x", lambda path: write_text(path, "x"))]) == [tmp_path / "gone" / "x"]


def test_another_process_may_be_trying_the_same_name(tmp_path, monkeypatch):
    tried, open_file = [], os.open

    def busy(path, *rest):
        tried.append(path)
        if len(tried) == 1:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        return open_file(path, *rest)

    monkeypatch.setattr(os, "open", busy)
    try_writing(tmp_path / "x.png")
    assert len(tried) == 2 and list(tmp_path.iterdir()) == []
