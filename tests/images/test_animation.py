import importlib.util
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.images.animation import check_writable, save_animation

FRAMES = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None] * 28, (9, 32, 48, 3))


def test_a_gif(tmp_path):
    save_animation(tmp_path / "x.gif", FRAMES, 8.0)
    with Image.open(tmp_path / "x.gif") as film:
        assert (film.n_frames, film.size, film.info["loop"], film.info["duration"]) == (9, (48, 32), 0, 120)


def test_an_mp4(tmp_path):
    check_writable(tmp_path / "x.mp4")
    # Of an odd height, which is made even.
    save_animation(tmp_path / "x.mp4", FRAMES[:, 1:], 8.0)
    data = (tmp_path / "x.mp4").read_bytes()
    # ISO/IEC 14496-12: box stsz counts the frames, tkhd ends with width and height in 16.16.
    start = data.index(b"stsz") + 4
    assert data[4:8] == b"ftyp" and b"avc1" in data and struct.unpack(">I", data[start + 8 : start + 12]) == (9,)
    start = data.index(b"tkhd")
    size = struct.unpack(">I", data[start - 4 : start])[0]
    assert struct.unpack(">II", data[start - 4 + size - 8 : start - 4 + size]) == (48 << 16, 32 << 16)
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]


def test_the_frames_of_an_encoder_that_fails_are_kept(tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(ffmpeg, "get_ffmpeg_exe", lambda: "false")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match="the .mp4 was not written .*; the frames are in .*/x.gif"):
        save_animation(tmp_path / "out" / "x.mp4", FRAMES, 8.0)
    assert len(list(tmp_path.glob("unclip_jax-*/x.gif"))) == 1 and list((tmp_path / "out").iterdir()) == []


def test_what_an_mp4_needs(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else find(name))
    with pytest.raises(UserError, match="an .mp4 needs one package more; run pip install imageio-ffmpeg"):
        check_writable(Path("x.mp4"))
    check_writable(Path("x.gif"))
