"""What cannot be written is said before anything is computed, by every command; what fails late is kept."""

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from sample import (
    decode,
    embed,
    encode,
    inpaint,
    interpolate,
    invert,
    probe,
    text_diff,
    text_to_image,
    upscale,
    variations,
)
from tests.sample.helpers import assert_one_line, call, pixels
from train import pack, plan
from unclip_jax.bundle import store
from unclip_jax.convert import __main__ as convert
from unclip_jax.core.npz import write_npz
from unclip_jax.eval import editing
from unclip_jax.eval.shapes import __main__ as shapes
from unclip_jax.sampling import outputs

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def never(monkeypatch):
    """No weights may be read."""
    load = store.load

    def described(*arguments, **options):
        assert not options.get("weights", True), "this comes after the output"
        return load(*arguments, **options)

    monkeypatch.setattr(store, "load", described)
    monkeypatch.setattr(pack, "load", described)


NAMES = {"too long": "x" * 252, "under a file": "file/x", "null": "x\0"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_command_tries_its_output_first(name, never, tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    write_npz(Path("z.npz"), z_i=np.ones((1, 16), np.float32))
    red = pictures[0]
    png, npz, folder = f"{NAMES[name]}.png", f"{NAMES[name]}.npz", NAMES[name] + "x" * 4
    drawn = {
        text_to_image: ["x"], decode: ["--embeddings", "z.npz"], variations: [red], probe: [red], upscale: [red],
        inpaint: [red, "--box", "0.2,0.2,0.5,0.5", "--prompt", "x"], text_diff: [red, "--to", "x"],
        interpolate: ["--prompts", "x", "y"], shapes: [], plan: ["tiny", "--topology", "v5e:1x1"],
    }  # fmt: skip
    commands = [(command, *words, "--json" if command is plan else "--out", png) for command, words in drawn.items()]
    commands += [
        (command, *words, "--out", npz) for command, *words in ((embed, "x"), (encode, red.parent), (invert, red))
    ]
    commands += [(text_to_image, "x", "--out", folder), (editing, "--out", folder), (pack, folder, "--base", "demo")]
    commands += [(interpolate, "--prompts", "x", "y", "--out", f"{NAMES[name]}.gif")]
    commands += [(convert, "to_hf_clip", "demo", folder), (convert, "hf_clip", tmp_path, folder)]
    for command, *words in commands:
        result = call(command, *words)
        assert result.status == 2 and result.out == "", (command.__name__, result)
        assert result.err.startswith("error: ") and result.err.count("\n") == 1, (command.__name__, result.err)
        assert "cannot be written" in result.err or "file is a file" in result.err, (command.__name__, result.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "z.npz"]


@pytest.mark.slow
def test_what_was_drawn_is_kept_where_the_disk_is_full(tiny_folder, tmp_path, monkeypatch):
    save_png = outputs.save_png

    def full(path, image, text):
        if path.parent.name == "out" and path.name != "0000_00.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save_png(path, image, text)

    monkeypatch.setattr(outputs, "save_png", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    steps = ["--prior.steps", 2, "--decoder.steps", 2, "--stop-at", 8, "--bundle", tiny_folder, "--num-images", 3]
    result = call(text_to_image, "a red circle", *steps, "--out", tmp_path / "out")
    (kept,) = tmp_path.glob("unclip_jax-*")
    assert result.status == 2 and f"what was made is in {kept}, move it from there; 1 before it are where" in result.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0000_00.png"]
    assert sorted(path.name for path in kept.iterdir()) == ["0000_01.png", "0000_02.png"]
    assert pixels(kept / "0000_02.png").shape == (8, 8, 3)
    result = call(text_to_image, "a red circle", *steps, "--out", tmp_path / "out" / "sheet.png")
    assert result.status == 2 and len(list(tmp_path.glob("unclip_jax-*/sheet.png"))) == 1


@pytest.mark.slow
def test_names_that_are_no_text_are_written(tiny_folder, tmp_path):
    """A name of bytes that are not UTF-8, of a picture and of what is made of it."""
    out = tmp_path / os.fsdecode(b"\xff.npz")
    result = call(embed, "a red circle", "--bundle", tiny_folder, "--prior.steps", 2, "--out", out)
    assert result.status == 0 and out.exists()
    assert_one_line(call(embed, "a red circle", "--bundle", tiny_folder, "--out", out), "is already there")
