"""The bundle that ships: whole, small, and fit to draw."""

import warnings

import pytest

from unclip_jax.bundle import find, load
from unclip_jax.bundle.store import verify_files
from unclip_jax.eval.shapes.cases import GROUPS, cases, evaluate
from unclip_jax.sampling.text_to_image import text_to_image


def test_whole_and_small():
    folder = find("demo")
    verify_files(folder)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 40e6


@pytest.mark.slow
def test_draws_what_captions_say():
    """As `python -m unclip_jax.eval.shapes`, on few captions and at 32 px, with room for other roundings."""
    groups = {name: cases(*GROUPS[name], 16) for name in ("one object, unseen pair", "two objects, seen pairs")}
    captions = [case.caption for group in groups.values() for case in group]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = text_to_image(load("demo"), captions, seed=0, stop_at=32, batch_size=8)
    one, one_shuffled, two, two_shuffled = evaluate(images, groups).values()
    assert one["colour"] >= 0.8 and one["shape"] >= 0.75 and one_shuffled["all"] <= 0.3
    assert two["all"] >= 0.4 and two_shuffled["all"] <= 0.2
