"""The bundle that ships: whole, small, and fit to draw."""

import warnings

from unclip_jax.bundle import find, load
from unclip_jax.bundle.store import verify_files
from unclip_jax.text_to_image import text_to_image


def test_whole_and_small():
    folder = find("demo")
    verify_files(folder)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 40e6


def test_draws_the_colours_of_the_prompt():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = text_to_image(load("demo"), ["a large red square on a white background"] * 2, seed=0, stop_at=32)
    centre = images[:, 12:20, 12:20].reshape(-1, 3).mean(0)
    border = images[:, :2].reshape(-1, 3).mean(0)
    assert centre[0] > centre[1] + 80 and centre[0] > centre[2] + 80
    assert border.min() > 200
