import json
import shutil

import numpy as np
import pytest

from sample import again, text_to_image
from tests.bundle.helpers import edit
from tests.sample.helpers import assert_one_line, call, pixels
from unclip_jax.images.png import read_text, save_png

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def drawn(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("again")
    shutil.copytree(tiny_folder, folder / "bundle")
    words = ["a red circle", "--num-images", 2, "--prior.steps", 2, "--decoder.steps", 2, "--stop-at", 8]
    assert call(text_to_image, *words, "--bundle", folder / "bundle", "--out", folder / "x.png").status == 0
    return folder / "x.png"


@pytest.mark.slow
def test_the_same_pixels_where_one_says(drawn, tmp_path):
    out = tmp_path / "new" / "y.png"
    assert call(again, drawn, "--out", out)[:2] == (0, f"{out}\n")
    np.testing.assert_array_equal(pixels(out), pixels(drawn))
    assert_one_line(call(again, drawn, "--out", out), f"{out} is already there")
    assert_one_line(call(again, drawn, "--out", tmp_path / "y.jpg"), "y.jpg is no PNG; give a name that ends in .png")
    # And the new one once more, over itself.
    assert call(again, out, "--out", out, "--overwrite").status == 0
    np.testing.assert_array_equal(pixels(out), pixels(drawn))


def test_a_picture_says_its_command_and_the_settings_that_were_asked_for(drawn):
    said = json.loads(read_text(drawn)["again"])
    assert sorted(said) == ["command", "inputs", "options"] and said["command"] == "text_to_image"
    assert said["options"]["settings"] == {"prior": {"steps": 2}, "decoder": {"steps": 2}}


@pytest.mark.slow
def test_pictures_of_older_versions_are_drawn_again(drawn, tmp_path):
    """They name the module, and have a group of settings for each kind of stage."""
    text = read_text(drawn)
    said = json.loads(text["again"])
    groups = {"prior": {"steps": 2, "eta": None}, "decoder": {"steps": 2}, "upsamplers": {"steps": None}}
    options = {name: value for name, value in said["options"].items() if name != "settings"} | groups
    old = {"module": "sample.text_to_image", "options": options, "inputs": {}}
    save_png(tmp_path / "x.png", pixels(drawn), text | {"again": json.dumps(old)})
    assert call(again, tmp_path / "x.png").status == 0
    np.testing.assert_array_equal(pixels(tmp_path / "x_again.png"), pixels(drawn))
    # Other steps, other pixels: they were read.
    old["options"]["decoder"]["steps"] = 3
    save_png(tmp_path / "y.png", pixels(drawn), text | {"again": json.dumps(old)})
    assert call(again, tmp_path / "y.png").status == 0
    assert (pixels(tmp_path / "y_again.png") != pixels(drawn)).any()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda said: "{", "again is no JSON ("),
        (lambda said: "[" * 100_000, "again is no JSON ("),
        (lambda said: "[]", "again: expected an object with the fields of Provenance, got []"),
        (lambda said: said | {"command": "os"}, "again: no command 'os' is known"),
        (lambda said: said | {"command": ["os"]}, "again.command: expected a value of type str"),
        (lambda said: said | {"options": {"promt": "x"}}, "again.options.promt: unknown field; did you mean"),
        (lambda said: said | {"inputs": {"lost.png": "00"}}, "lost.png is not as it was when "),
    ],
)
def test_text_that_makes_no_sense(drawn, tmp_path, change, line):
    text = read_text(drawn)
    changed = change(json.loads(text["again"]))
    text["again"] = changed if isinstance(changed, str) else json.dumps(changed)
    save_png(tmp_path / "x.png", pixels(drawn), text)
    assert_one_line(call(again, tmp_path / "x.png"), line)


def test_pictures_that_say_nothing(tmp_path):
    save_png(tmp_path / "x.png", np.zeros((4, 4, 3), np.uint8), {})
    assert_one_line(call(again, tmp_path / "x.png"), "x.png does not say how it was drawn; give a .png of one of the")
    assert_one_line(call(again, tmp_path / "y.png"), "y.png; check the name")


@pytest.mark.slow
def test_another_bundle(drawn, tmp_path):
    copy = shutil.copytree(drawn.parent, tmp_path / "copy") / "bundle"
    text = read_text(drawn)
    said = json.loads(text["again"])
    said["options"]["bundle"] = str(copy)
    save_png(tmp_path / "x.png", pixels(drawn), text | {"again": json.dumps(said)})
    assert call(again, tmp_path / "x.png").status == 0
    edit(copy, lambda config: config.update(description="another"))
    line = "is not the one that "
    assert_one_line(call(again, tmp_path / "x.png", "--overwrite"), line)
