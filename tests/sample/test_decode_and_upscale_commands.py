import numpy as np
import pytest

from sample import decode, embed, text_to_image, upscale
from tests.sample.helpers import assert_drawn_again, assert_one_line, call, pixels, tiles
from unclip_jax.images.png import read_text

pytestmark = pytest.mark.usefixtures("quick_compile")
CAPTIONS = ["a red circle", "two rings"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(CAPTIONS))
    return path


@pytest.fixture(scope="module")
def z(tiny_folder, prompts):
    out = prompts.with_name("z.npz")
    words = ["--prompts", prompts, "--seed", 4, "--prior.steps", 2, "--out", out, "--bundle", tiny_folder]
    assert call(embed, *words).status == 0
    return out


@pytest.mark.slow
def test_decoding_what_the_prior_drew_is_text_to_image(tiny_folder, prompts, z, tmp_path):
    words = ["--bundle", tiny_folder, "--seed", 4, "--stop-at", 8, "--decoder.steps", 2, "--out"]
    assert call(decode, "--embeddings", z, *words, tmp_path / "decoded").status == 0
    assert call(text_to_image, "--prompts", prompts, "--prior.steps", 2, *words, tmp_path / "whole.png").status == 0
    files = [tmp_path / "decoded" / name for name in ("0000.png", "0001.png")]
    whole = tiles(pixels(tmp_path / "whole.png"), 8)
    np.testing.assert_array_equal(np.stack([pixels(path) for path in files]), whole[:, 0])
    assert [read_text(path)["prompt"] for path in files] == CAPTIONS
    assert_drawn_again(files[1])
    assert call(decode, "--embeddings", z, *words, tmp_path / "unheard.png", "--no-captioned").status == 0
    assert (tiles(pixels(tmp_path / "unheard.png"), 8)[0] != whole[:, 0]).any()


@pytest.mark.slow
def test_images_are_drawn_larger(tiny_folder, pictures, tmp_path):
    words = ["--bundle", tiny_folder, "--batch-size", 2]
    assert call(upscale, *pictures, *words, "--out", tmp_path / "x.png").status == 0
    drawn = tiles(pixels(tmp_path / "x.png"), 16)[0]
    assert drawn.shape == (2, 16, 16, 3) and (drawn[0] != drawn[1]).any()
    assert "decoder" not in read_text(tmp_path / "x.png")["settings"]
    assert_drawn_again(tmp_path / "x.png")
    assert call(upscale, pictures[0].parent, *words, "--from-size", 8, "--out", tmp_path / "files").status == 0
    for name, image in zip(("red", "soft"), drawn, strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / "files" / f"{name}.png"), image)
    assert_drawn_again(tmp_path / "files" / "soft.png")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no image given; name one or more files, or a folder of them"),
        (["RED", "--from-size", "16"], "from_size is 16; bundle tiny starts from 8 px"),
        (["RED", "--stop-at", "8"], "stop_at is 8; from 8 px bundle tiny makes 16 px"),
        (["RED", "--upsamplers.steps", "0"], "upsampler_0: steps is 0; choose 1 to 100"),
        (["RED", "--out", "here"], "red.png is already there"),
    ],
)
def test_mistakes_of_upscaling(tiny_folder, pictures, monkeypatch, tmp_path, words, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "red.png").write_text("mine")
    words = [pictures[0] if word == "RED" else word for word in words]
    assert_one_line(call(upscale, *words, "--bundle", tiny_folder), line)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--embeddings", "absent.npz"], "no file absent.npz; check the name"),
        (["--embeddings", "Z", "--decoder.steps", "0"], "decoder: steps is 0; choose 1 to 100"),
        (["--embeddings", "Z", "--only", "2"], "only is 2; this request draws images 0 to 1"),
        (["--embeddings", "Z", "--out", "."], " is already there"),
        (["--embeddings", "FEW"], " has 1 prompts for 2 z_i; give --no-captioned"),
    ],
)
def test_mistakes_of_decoding(tiny_folder, z, monkeypatch, tmp_path, words, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0001.png").write_text("mine")
    np.savez(tmp_path / "few.npz", z_i=np.ones((2, 16)), prompts=np.array(["a"]))
    names = {"Z": z, "FEW": tmp_path / "few.npz"}
    words = [names.get(word, word) for word in words]
    assert_one_line(call(decode, *words, "--bundle", tiny_folder), line)
