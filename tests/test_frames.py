"""How far it is from a command to the network: the calls that a reader follows."""

import sys
from pathlib import Path

import pytest

from sample import text_to_image
from tests.sample.helpers import call
from train import decoder
from unclip_jax.models.unet import UNetSpec

pytestmark = pytest.mark.usefixtures("quick_compile")

ROOT = Path(__file__).parent.parent
ROOMS = tuple(f"{ROOT / folder}/" for folder in ("unclip_jax", "train", "sample"))
MOST_FRAMES, MOST_FILES = 10, 6


class ReachedError(Exception):
    """The network was called."""


@pytest.fixture
def way(monkeypatch):
    """[(file, function)] from the command's `main` to the first call of a U-Net."""
    frames = []

    def apply(self, *arguments, **options):
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_name != "main":
            if frame.f_code.co_filename.startswith(ROOMS):
                frames.append((frame.f_code.co_filename, frame.f_code.co_name))
            frame = frame.f_back
        frames.append((frame.f_code.co_filename, "main"))
        raise ReachedError

    monkeypatch.setattr(UNetSpec, "apply", apply)
    return frames


@pytest.mark.slow
def test_from_a_caption(way, tiny_folder, tmp_path):
    out = ["--out", tmp_path / "x.png", "--decoder.guidance-scale", 3]
    with pytest.raises(ReachedError):
        call(text_to_image, "a red circle", "--bundle", tiny_folder, *out)
    assert len(way) <= MOST_FRAMES, way
    # Guidance, which a request may leave out, is a file of its own.
    assert len({file for file, _ in way if not file.endswith("guidance.py")}) <= MOST_FILES, way


@pytest.mark.slow
def test_from_a_batch(way, tiny_folder, tmp_path):
    run = ["--run.workdir", tmp_path / "run", "--run.steps", 1]
    with pytest.raises(ReachedError):
        call(decoder, "tiny", "--clip", tiny_folder, *run)
    assert len(way) <= MOST_FRAMES, way
    assert len({file for file, _ in way}) <= MOST_FILES, way
