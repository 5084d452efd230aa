"""What a picture says of itself may come from anyone: it is bounded, and opens nothing unsaid."""

import json
import os
import shutil

import numpy as np
import pytest

from sample import again, text_to_image
from tests.sample.helpers import assert_one_line, call
from unclip_jax.bundle import store
from unclip_jax.images.png import save_png

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def said(tmp_path, monkeypatch):
    """Runs `sample.again` on a picture that says this, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(command="text_to_image", inputs=None, **options):
        given = {"prompt": "x"} if command == "text_to_image" else {}
        text = {"command": command, "options": given | options, "inputs": inputs or {}}
        save_png(tmp_path / "x.png", np.zeros((2, 2, 3), np.uint8), {"again": json.dumps(text), "bundle_hash": ""})
        return call(again, "x.png")

    return run


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"num_images": 10**9}, "this asks for 1,000,000,000 images; ask for at most 100,000 at once"),
        ({"num_images": 2000}, "x.png asks for 2,000 images; at most 1,024 are drawn because a picture says so"),
        ({"num_images": 0}, "num_images is 0; it must be at least 1"),
        ({"num_images": 10**30}, "images; ask for at most 100,000 at once"),
        ({"num_images": "9" * 100}, "options.num_images: expected a value of type int"),
        ({"batch_size": 10**9}, "batch_size is 1000000000; it must be at most 4096"),
        ({"seed": 2**70}, "seed is 1180591620717411303424; it must be at least 0 and below 2**32"),
        ({"settings": {"prior": {"steps": 10**9}}}, ""),
        ({"settings": {"prior": {"code": 1}}}, ""),
        ({"bundle": "x" * 5000}, "File name too long"),
        ({"bundle": "a\0b"}, "x.png names a file that cannot be"),
        ({"bundle": "\x1b[31mred"}, r"no bundle \x1b[31mred; give a bundle's folder"),
        ({"prompts": "/dev/zero", "prompt": None}, "/dev/zero is a device and no file"),
        ({"prompts": "pipe", "prompt": None}, "pipe is a pipe and no file"),
        ({"bundle": "bundle_of_a_pipe"}, "config.json"),
        ({"command": "os.system"}, "no command 'os.system' is known"),
    ],
)
def test_what_is_asked_for_is_bounded(said, tmp_path, options, line):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bundle_of_a_pipe").mkdir()
    os.mkfifo(tmp_path / "bundle_of_a_pipe" / "config.json")
    result = said(**options)
    own = [each for each in result.err.splitlines() if not each.startswith("reads ")]
    assert result.status == 2 and result.out == "" and len(own) == 1 and own[0].startswith("error: ")
    assert line in own[0] and not (tmp_path / "x_again.png").exists()


@pytest.mark.parametrize(
    ("command", "options", "line"),
    [
        ("interpolate", {"prompts": ["a", "b"], "frames": 10_000}, "x.png asks for 20,000 images"),
        ("text_diff", {"images": ["a.png"], "after": "x", "thetas": [0.5] * 50_000}, "x.png asks for 50,000 images"),
        ("probe", {"images": ["a.png"], "components": list(range(2000))}, "x.png asks for 2,000 images"),
        (
            "inpaint",
            {"images": ["a.png"], "prompt": "x", "box": "0,0,1,1", "times": 10**9},
            "times is 1000000000; choose",
        ),
        ("variations", {"images": ["/dev/zero"]}, "/dev/zero is a device and no file"),
        ("decode", {"embeddings": "/dev/zero"}, "/dev/zero is a device and no file"),
    ],
)
def test_so_are_other_commands(said, command, options, line):
    result = said(command, **options)
    assert result.status == 2 and result.out == "" and line in result.err.splitlines()[-1]


def test_files_elsewhere_are_named_before_they_are_opened(said, tmp_path_factory, tiny_folder, monkeypatch):
    opened = []
    load = store.load
    monkeypatch.setattr(store, "load", lambda name, **more: [opened.append(str(name)), load(name, **more)][1])
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    copy = shutil.copytree(tiny_folder, elsewhere / "bundle")
    result = said(bundle=str(copy), prompts=str(elsewhere / "prompts.txt"), prompt=None)
    assert f"reads {copy}, which x.png names" in result.err
    assert f"reads {elsewhere / 'prompts.txt'}, which x.png names" in result.err
    assert result.status == 2 and opened == [str(copy)]
    shutil.copytree(tiny_folder, "near")
    assert_one_line(said(bundle="near"), "bundle tiny is not the one that x.png was drawn with")


@pytest.mark.slow
def test_a_request_of_ones_own_is_bounded_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(call(text_to_image, "x", "--num-images", 10**6), "this asks for 1,000,000 images")
    (tmp_path / "prompts.txt").write_text("x\n" * 60_000)
    words = ["--prompts", "prompts.txt", "--num-images", 2]
    assert_one_line(call(text_to_image, *words), "this asks for 120,000 images; ask for at most 100,000 at once")
    assert_one_line(
        call(text_to_image, "x" * 20_000, "--out", "x.png"), "a caption has 20,000 characters; give at most"
    )
