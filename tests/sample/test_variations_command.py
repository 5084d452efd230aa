import numpy as np
import pytest

from sample import variations
from tests.sample.helpers import assert_drawn_again, assert_one_line, call, pixels, tiles
from unclip_jax.images.png import read_text

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def run(tiny_folder):
    def run(*words):
        # What is given twice counts as it is given last.
        return call(variations, "--batch-size", 2, "--decoder.steps", 2, "--bundle", tiny_folder, *words)

    return run


@pytest.fixture(scope="module")
def sheet(run, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("variations") / "made" / "sheet.png"
    result = run(*pictures, "--num-images", 2, "--seed", 3, "--out", out)
    assert result.status == 0 and result.out == f"{out}\n"
    assert "4 of 4 images: upsampler_0" in result.err
    return out


@pytest.mark.slow
def test_a_sheet_and_a_folder(run, pictures, sheet, tmp_path):
    # Two rows of three 16 px images with lines of 2 px between; the image itself comes first.
    drawn = tiles(pixels(sheet), 16)
    assert drawn.shape == (2, 3, 16, 16, 3) and (drawn[0, 0] == [255, 0, 0]).all()
    text = read_text(sheet)
    assert text["images"] == "red\nsoft" and text["seed"] == "3"
    assert '"decoder": {' in text["settings"] and "prior" not in text["settings"]
    assert run(pictures[0].parent, "--num-images", 2, "--seed", 3, "--out", tmp_path / "files").status == 0
    files = sorted((tmp_path / "files").iterdir())
    assert [path.name for path in files] == ["red_00.png", "red_01.png", "soft_00.png", "soft_01.png"]
    np.testing.assert_array_equal(np.stack([pixels(path) for path in files]), drawn[:, 1:].reshape(4, 16, 16, 3))
    assert [read_text(path)["index"] for path in files] == list("0123")
    # Four different pictures.
    assert len({pixels(path).tobytes() for path in files}) == 4


@pytest.mark.slow
def test_one_image_of_the_request_and_again(run, pictures, sheet, tmp_path):
    words = [*pictures, "--num-images", 2, "--seed", 3]
    assert run(*words, "--only", 2, "--out", tmp_path / "one.png").status == 0
    np.testing.assert_array_equal(pixels(tmp_path / "one.png"), tiles(pixels(sheet), 16)[1, 1])
    assert_drawn_again(tmp_path / "one.png")
    assert_drawn_again(sheet)


@pytest.mark.slow
def test_another_batch_size(run, pictures, sheet, tmp_path):
    words = ["--num-images", 2, "--seed", 3, "--stop-at", 8]
    assert run(*pictures, *words, "--out", tmp_path / "two").status == 0
    assert run(*pictures, *words, "--batch-size", 3, "--out", tmp_path / "three").status == 0
    for path in (tmp_path / "two").iterdir():
        assert np.abs(pixels(path).astype(int) - pixels(tmp_path / "three" / path.name)).max() <= 1


@pytest.mark.slow
def test_from_inversion_eta_is_how_far_it_strays(run, pictures, tmp_path):
    def draw(eta):
        out = tmp_path / f"{eta}.png"
        words = ["--from-inversion", "--decoder.eta", eta, "--num-images", 1, "--stop-at", 8, "--out", out]
        assert run(*pictures, *words).status == 0
        drawn = tiles(pixels(out), 8).astype(int)
        return np.abs(drawn[:, 1] - drawn[:, 0]).mean()

    assert draw(0) < 0.5 * draw(1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere.png"], "nowhere.png: cannot be read"),
        ([], "no image given; name one or more files, or a folder of them"),
        (["FOLDER"], " holds no images; give a folder of "),
        (["RED", "--latents", "x.npz"], "both images and --latents are given; give one of them"),
        (["--latents", "absent.npz"], "no file absent.npz; check the name"),
        (["RED", "--num-images", "0"], "num_images is 0; it must be at least 1"),
        (["RED", "--seed", "-1"], "seed is -1"),
        (["RED", "--batch-size", "0"], "batch_size is 0"),
        (["RED", "--only", "4"], "only is 4; this request draws images 0 to 3"),
        (["RED", "--out", "x.jpg"], "x.jpg is no PNG"),
        (["RED", "--decoder.steps", "0"], "decoder: steps is 0; choose 1 to 100"),
        (["RED", "--decoder.eta", "2"], "decoder: eta is 2.0; choose 0 to 1"),
        (["RED", "--stop-at", "7"], "stop_at is 7; bundle tiny makes 8, 16 px"),
    ],
)
def test_mistakes(run, pictures, monkeypatch, tmp_path, words, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    names = {"RED": pictures[0], "FOLDER": tmp_path / "empty"}
    words = [names.get(word, word) for word in words]
    assert_one_line(run(*words), line)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.slow
def test_nothing_is_overwritten(run, pictures, tmp_path):
    (tmp_path / "red_01.png").write_text("mine")
    words = [pictures[0], "--num-images", 2, "--stop-at", 8, "--out", tmp_path]
    assert_one_line(run(*words), "red_01.png is already there; give another --out, or replace it with --overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["red_01.png"]
    assert run(*words, "--overwrite").status == 0
    assert pixels(tmp_path / "red_01.png").shape == (8, 8, 3)
    (tmp_path / "file").write_text("mine")
    assert_one_line(run(*words[:-1], tmp_path / "file" / "x.png"), "file is a file, so nothing can be written into it")
    assert_one_line(run(*words[:-1], tmp_path / "file"), "file is a file, so nothing can be written into it")
