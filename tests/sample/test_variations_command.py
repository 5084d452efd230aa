import sys

import numpy as np
import pytest
from PIL import Image

from sample import variations
from unclip_jax.errors import run_cli
from unclip_jax.images import read_text

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def run(monkeypatch, tmp_path, tiny_folder, capsys):
    monkeypatch.setenv("UNCLIP_JAX_NO_CACHE", "1")

    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["variations", *map(str, words), "--bundle", str(tiny_folder)])
        try:
            run_cli(variations.main)
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / "red.png", tmp_path / "blue.jpg"]
    for path, colour, size in zip(paths, ("red", "blue"), ((40, 30), (16, 16)), strict=True):
        Image.new("RGB", size, colour).save(path)
    return paths


def test_a_sheet_and_a_folder(run, pictures, tmp_path):
    status, out, err = run(*pictures, "--num-images", "2", "--seed", "3", "--out", tmp_path / "sheet.png")
    assert status == 0 and out == f"{tmp_path / 'sheet.png'}\n"
    assert "image 2 of 2: upsampler_0" in err
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    # Two rows of three 16 px images with lines of 2 px between; the image itself comes first.
    assert sheet.shape == (34, 52, 3) and (sheet[:16, :16] == [255, 0, 0]).all()
    text = read_text(tmp_path / "sheet.png")
    assert text["images"] == "red.png\nblue.jpg" and text["seed"] == "3" and "decoder" in text["settings"]
    assert run(*pictures, "--num-images", "2", "--seed", "3", "--out", tmp_path / "files")[0] == 0
    files = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert files == ["blue_00.png", "blue_01.png", "red_00.png", "red_01.png"]
    assert (np.asarray(Image.open(tmp_path / "files" / "red_01.png")) == sheet[:16, 36:]).all()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere.png"], "nowhere.png: cannot be read"),
        (["RED", "--num-images", "0"], "num_images is 0; it must be at least 1"),
        (["RED", "--seed", "-1"], "seed is -1"),
        (["RED", "--out", "x.jpg"], "x.jpg is no PNG"),
        (["RED", "--steps", "0"], "decoder: steps is 0; choose 1 to 100"),
        (["RED", "--stop-at", "7"], "stop_at is 7; bundle tiny makes 8, 16 px"),
    ],
)
def test_mistakes(run, pictures, words, line):
    status, out, err = run(*(pictures[0] if word == "RED" else word for word in words))
    assert (status, out) == (2, "") and line in err and err.count("\n") == 1
