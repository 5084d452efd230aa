"""What `python -m train.data` says and draws."""

import sys

import numpy as np
import pytest
from PIL import Image

from tests.data.test_folder import write_captioned
from train import data
from unclip_jax.core.errors import run_cli


@pytest.fixture
def look(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train.data", *map(str, words)])
        status = 0
        try:
            run_cli(data.main)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_what_it_says_and_draws(look, tmp_path):
    write_captioned(tmp_path / "photos", [f"{i}.png" for i in range(5)])
    (tmp_path / "photos" / "9.png").write_bytes(b"no image")
    (tmp_path / "photos" / "9.txt").write_text("broken")
    words = ["photos", "--data.max-bad-share", 0.5, "--data.batch-size", 2, "--pictures", 3]
    status, out, _ = look(*words, "--clip", "demo")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "5 records; of 5 of them, evenly spaced:" and "tokens; 0.0% do not fit into 28" in out
    assert any(line.startswith("batches of 64 px at ") for line in lines)
    assert lines[-3] == "left out as unusable, 1:"
    assert lines[-2] == "  9.png: not an image that Pillow can read; convert it to PNG or JPEG"
    assert lines[-1] == "out/data.png: 3 pictures"
    with Image.open(tmp_path / "out" / "data.png") as sheet:
        assert sheet.width > 2 * data.SIDE and np.asarray(sheet).std() > 0
    assert look(*words)[0] == 2  # the sheet is there already
    assert look(*words, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "no dataset 'nowhere'; give "),
        (["--examples", "0"], "examples is 0; it must be 1 or more"),
        (["--data.min-side", "0"], "min_side is 0"),
    ],
)
def test_mistakes_get_a_line(look, tmp_path, words, line):
    write_captioned(tmp_path / "photos", ["0.png"])
    status, out, err = look(*(words if words[0] == "nowhere" else ["photos", *words]))
    assert (status, out) == (2, "") and err.startswith(f"error: {line}") and err.count("\n") == 1
