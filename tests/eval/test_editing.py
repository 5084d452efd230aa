import sys

import numpy as np
import pytest

from unclip_jax.core.errors import run_cli
from unclip_jax.data.captioned_shapes.scenes import Object
from unclip_jax.eval import editing
from unclip_jax.eval.editing import alike, gradients, kept, moved, one_object
from unclip_jax.eval.shapes.checker import Found
from unclip_jax.images.png import read_text

pytestmark = pytest.mark.usefixtures("quick_compile")


def found(**about):
    return Found(**({"colour": "red", "shape": "ring", "x": 0.5, "y": 0.5, "area": 0.1, "overlap": 0.9} | about))


def test_gradients_at_the_border_of_a_mask():
    """A ramp of 2 levels a pixel outside, 5 inside, and a step of 40 more where the mask begins and ends."""
    mask = np.zeros((1, 12, 12), bool)
    mask[:, :, 4:8] = True
    outside = 2 * np.arange(12)
    row = np.where(mask[0, 0], 40 + 8 + 5 * (np.arange(12) - 4), outside)
    images = np.broadcast_to(row[None, None, :, None], (1, 12, 12, 3)).astype(np.uint8)
    inside, across, beside = gradients(images, mask)
    assert (inside, beside) == (5, 2) and across == pytest.approx(np.mean([48 - 6, 63 - 16]))


def test_what_counts_as_kept_and_as_reached():
    wanted = [Object(shape="ring", colour="red", size="large", texture="plain", x=0.5, y=0.5, radius=0.2)] * 4
    now = [found(), found(colour="blue"), None, found(shape=None)]
    assert alike(now, wanted, "colour") == 50 and alike(now, wanted, "colour", "shape") == 25
    assert kept([found(x=0.55), found(y=0.61), None], [found()] * 3) == [True, False, False]
    blank, half = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 51, np.uint8)
    assert moved(blank, half) == pytest.approx(0.2)
    assert one_object(np.full((1, 32, 32, 3), 200, np.uint8)) == [None]


@pytest.mark.slow
def test_every_operation_is_judged(tiny_folder, monkeypatch, capsys, tmp_path):
    words = ["--images", "2", "--frames", "1", "--thetas", "0.3", "--stop-at", "16", "--out", str(tmp_path / "out")]
    monkeypatch.setenv("UNCLIP_JAX_NO_CACHE", "1")
    monkeypatch.setattr(sys, "argv", ["editing", "--bundle", str(tiny_folder), *words])
    run_cli(editing.main)
    out = capsys.readouterr().out
    for name in editing.OPERATIONS:
        assert f"\n{name}: " in f"\n{out}"
        assert read_text(tmp_path / "out" / f"{name}.png") is not None
    assert "outside identical: True" in out and "PSNR median" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--images", "0"], "images is 0; it must be at least 1"),
        (["--only", "inverting"], "no operation 'inverting'; choose of inversion, variations, text_diff"),
    ],
)
def test_bad_options(monkeypatch, capsys, words, line):
    monkeypatch.setattr(sys, "argv", ["editing", *words])
    with pytest.raises(SystemExit) as end:
        run_cli(editing.main)
    assert end.value.code == 2 and line in capsys.readouterr().err
