"""`--adapters` of the commands that draw: merged once, recorded in the picture, drawn again."""

import json

import numpy as np
import pytest

from sample import again, embed, text_to_image
from tests.convert.test_adapters import adapter
from tests.sample.helpers import assert_drawn_again, assert_one_line, call, pixels
from unclip_jax import bundle
from unclip_jax.convert import __main__ as convert
from unclip_jax.convert.adapters import save_adapter
from unclip_jax.images.png import read_text
from unclip_jax.models.parameters import identity

PROMPT = "a red circle above a blue square"

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def file(tmp_path_factory, tiny_folder):
    """An adapter of the decoder."""
    path, system = tmp_path_factory.mktemp("adapter") / "a.safetensors", bundle.load(tiny_folder)
    own = adapter(system.networks["decoder"], "decoder", base=identity(system.params["decoder"]))
    save_adapter(path, own, system.networks["decoder"])
    return path


def draw(folder, out, *words):
    return call(text_to_image, PROMPT, "--bundle", folder, "--stop-at", 8, "--out", out, *words)


@pytest.mark.slow
def test_a_picture_with_an_adapter_says_so_and_is_drawn_again(file, tiny_folder, tmp_path):
    for name, words in {
        "plain": [],
        "none": ["--adapters", f"{file}:0"],
        "adapted": ["--adapters", f"{file}:0.7"],
        "twice": ["--adapters", f"{file}:0.3", f"{file}:0.4"],
        "staged": ["--one-stage-at-a-time", "--adapters", f"{file}:0.7"],
    }.items():
        result = draw(tiny_folder, tmp_path / f"{name}.png", *words)
        assert result.status == 0, result.err
    images = {path.stem: pixels(path).astype(int) for path in tmp_path.glob("*.png")}
    np.testing.assert_array_equal(images["none"], images["plain"])
    np.testing.assert_array_equal(images["staged"], images["adapted"])
    assert np.abs(images["twice"] - images["adapted"]).max() <= 1
    assert np.abs(images["adapted"] - images["plain"]).max() > 8
    said = json.loads(read_text(tmp_path / "adapted.png")["again"])
    assert said["options"]["adapters"] == [f"{file}:0.7"]
    assert list(said["inputs"]) == [str(file)]
    assert_drawn_again(tmp_path / "adapted.png")
    # Merged into a bundle it draws the same.
    assert call(convert, "merge", tiny_folder, tmp_path / "merged", "--adapters", f"{file}:0.7").status == 0
    draw(tmp_path / "merged", tmp_path / "merged.png")
    assert np.abs(pixels(tmp_path / "merged.png").astype(int) - images["adapted"]).max() <= 1
    # The adapter is not that any more.
    original = file.read_bytes()
    file.write_bytes(original[:-4] + b"\0\0\0\0")
    assert_one_line(call(again, tmp_path / "adapted.png"), f"{file} is not as it was when ")
    file.write_bytes(original)


def test_what_is_wrong_is_said_before_any_work(file, tiny_folder, tmp_path):
    out = tmp_path / "x.png"
    assert_one_line(draw(tiny_folder, out, "--adapters", f"{file}:much"), "give FILE:STRENGTH, such as")
    assert_one_line(draw(tiny_folder, out, "--adapters", tmp_path / "no.safetensors"), "no.safetensors")
    assert_one_line(draw(tiny_folder, out, "--adapters", f"prior={file}"), "give an adapter of one of prior")
    assert_one_line(draw(tiny_folder, out, "--adapters", f"decode={file}"), "has no decode, only clip, prior")
    assert not out.exists()


@pytest.mark.slow
def test_embeddings_take_them_too(tiny_folder, tmp_path):
    system = bundle.load(tiny_folder)
    save_adapter(tmp_path / "p.safetensors", adapter(system.networks["prior"], "prior"), system.networks["prior"])
    found = []
    for name, words in (("plain", []), ("adapted", ["--adapters", tmp_path / "p.safetensors"])):
        result = call(embed, PROMPT, "--bundle", tiny_folder, "--out", tmp_path / f"{name}.npz", *words)
        assert result.status == 0, result.err
        with np.load(tmp_path / f"{name}.npz") as file:
            found.append(file["z_i"])
    assert np.abs(found[0] - found[1]).max() > 1e-3
