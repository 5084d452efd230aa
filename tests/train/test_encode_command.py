"""python -m train.encode, in this process; what a person gets wrong ends in one line."""

import importlib
import json
import sys

import pytest
from PIL import Image

from unclip_jax.core.errors import run_cli

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command and gives its exit status, stdout and stderr."""
    monkeypatch.setenv("UNCLIP_JAX_NO_CACHE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train.encode", *map(str, words)])
        status = 0
        try:
            run_cli(importlib.import_module("train.encode").main)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (20, 24), (40 * number, 90, 9)).save(folder / f"{number}.png")
    return folder


def test_images_without_captions_become_a_store(command, photos, tiny_folder, tmp_path):
    words = (photos, "--clip", tiny_folder, "--out", tmp_path / "s", "--no-captions", "--batch-size", 2)
    status, out, err = command(*words)
    assert (status, err) == (0, "")
    assert "encoded 5 of 5 records" in out and out.endswith(f"wrote {tmp_path / 's'}: 5 embeddings\n")
    said = json.loads((tmp_path / "s" / "store.json").read_text())
    assert (said["embed_dim"], said["dtype"], said["embedding"], said["records"]) == (16, "float16", "unit", 5)
    assert command(*words)[:2] == (0, f"{tmp_path / 's'} has all its 5 embeddings already\n")
    assert not (tmp_path / "s" / "lock.json").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--clip", "nowhere"), "no bundle nowhere; give a bundle's folder or a name"),
        (("--batch-size", 0), "batch_size is 0 and shard_records 10000; both must be at least 1"),
        (("--text", "--no-captions"), "there are no captions whose embeddings could be stored; leave out --text or"),
        (("--data.flip",), "--data.flip has no use here, each record is encoded once as it is; leave it out"),
        (("--data.embeddings", "x"), "--data.embeddings has no use here"),
        (("--dtype", "bfloat16"), ""),
        ((), "photos holds 5 images and no captions; put x.txt beside x.jpg"),
    ],
)
def test_what_is_wrong_is_one_line(command, photos, tiny_folder, tmp_path, words, line):
    status, out, err = command(photos, "--clip", tiny_folder, "--out", tmp_path / "s", *words)
    assert (status, out) == (2, "") and err.startswith("error: ") and line in err and err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_a_store_is_no_source_of_images(command, tiny_folder, tmp_path):
    status, _, err = command("store:x", "--clip", tiny_folder, "--out", tmp_path / "s")
    assert status == 2 and "store:x has no images, and this run needs them" in err
