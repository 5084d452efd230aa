import pytest

from unclip_jax.core.files import atomic_write


def test_a_file_appears_whole_and_replaces_an_old_one(tmp_path):
    path = tmp_path / "new" / "folder" / "x.txt"
    for content in ("one", "two"):
        with atomic_write(path) as draft:
            draft.write_text(content)
            assert draft.parent == path.parent
        assert path.read_text() == content
    assert [file.name for file in path.parent.iterdir()] == ["x.txt"]


def test_a_folder_replaces_a_folder(tmp_path):
    path = tmp_path / "bundle"
    for name in ("a", "b"):
        with atomic_write(path) as draft:
            draft.mkdir()
            (draft / name).write_text(name)
    assert [file.name for file in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path, folder, error):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as draft:
        if folder:
            draft.mkdir()
        (draft / "part" if folder else draft).write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path):
    path = tmp_path / "x"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass  # nothing was written at the draft's path
    assert [file.name for file in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]
