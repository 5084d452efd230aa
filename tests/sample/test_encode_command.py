import sys

import numpy as np
import pytest
from PIL import Image

from sample import encode
from tests.train.test_commands import photos
from unclip_jax.core.errors import run_cli

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def run(monkeypatch, tmp_path, tiny_folder):
    monkeypatch.setenv("UNCLIP_JAX_NO_CACHE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*words):
        argv = ["encode", *map(str, words), "--bundle", str(tiny_folder), "--batch-size", "2"]
        monkeypatch.setattr(sys, "argv", argv)
        run_cli(encode.main)

    return run


def test_photographs_are_encoded(run, tmp_path, capsys):
    folder = photos(tmp_path / "photos")
    run(folder, "--out", tmp_path / "z.npz")
    with np.load(tmp_path / "z.npz", allow_pickle=False) as file:
        assert file["names"].tolist() == [f"{i}.jpg" for i in range(5)]
        z_i = file["z_i"]
    assert z_i.shape == (5, 16) and sorted(np.load(tmp_path / "z.npz").files) == ["names", "z_i"]
    np.testing.assert_allclose(np.linalg.norm(z_i, axis=1), 1, rtol=1e-5)
    cosines = z_i @ z_i.T
    assert (cosines[~np.eye(5, dtype=bool)] < 0.9999).all()
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'z.npz'}\n" and "encoded 5 of 5" in captured.err

    # The batch that an image is in does not matter, nor does the padding of the last one.
    for i in (0, 4):
        alone = tmp_path / f"alone_{i}"
        alone.mkdir()
        for name in ("a.jpg", "b.jpg"):
            (alone / name).write_bytes((folder / f"{i}.jpg").read_bytes())
        run(alone, "--out", tmp_path / "alone.npz", "--overwrite")
        np.testing.assert_allclose(np.load(tmp_path / "alone.npz")["z_i"][0], z_i[i], atol=1e-6)


def test_nothing_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "z.npz").write_text("mine")
    with pytest.raises(SystemExit):
        run("absent", "--out", tmp_path / "z.npz")
    assert "z.npz is already there; give another --out, or replace it with --overwrite" in capsys.readouterr().err


def test_captions_too(run, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in ("x", "y"):
        Image.new("RGB", (20, 30), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a red {name}")
    run(folder, "--captions", "--out", tmp_path / "z.npz")
    z_t = np.load(tmp_path / "z.npz")["z_t"]
    assert z_t.shape == (2, 16) and np.abs(z_t[0] - z_t[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["absent"], "absent is not a folder; give a folder of images"),
        (["absent", "--out", "z.txt"], "z.txt does not end in .npz; give a name that does"),
        (["absent", "--captoins"], "no option --captoins; did you mean --captions?"),
    ],
)
def test_mistakes(run, monkeypatch, tmp_path, capsys, words, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(*words)
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and line in err
