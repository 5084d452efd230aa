import dataclasses
import warnings

import numpy as np
import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.sampling.captions import TruncationWarning
from unclip_jax.sampling.session import Progress
from unclip_jax.sampling.text_to_image import text_to_image

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPTS = ["a red circle", "a blue square above a green star", "two rings"]


@pytest.fixture(scope="module")
def images(tiny_bundle):
    return text_to_image(tiny_bundle, PROMPTS, seed=3)


def test_images(images):
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
    assert images.std() > 10


def test_same_seed_same_images(tiny_bundle, images):
    np.testing.assert_array_equal(text_to_image(tiny_bundle, PROMPTS, seed=3), images)
    assert (text_to_image(tiny_bundle, PROMPTS, seed=4) != images).any()


@pytest.mark.slow
def test_batch_size_does_not_change_the_images(tiny_bundle, images):
    """Two and then one with a row of padding: another program, so a level of 255 may round to its neighbour."""
    seen: list[Progress] = []
    split = text_to_image(tiny_bundle, PROMPTS, seed=3, batch_size=2, progress=seen.append)
    assert np.abs(split.astype(int) - images).max() <= 1
    assert [(p.stage, p.number, p.first, p.done, p.total) for p in seen] == [
        (stage, number, first, done, 3)
        for first, done in ((0, 2), (2, 3))
        for number, stage in enumerate(("prior", "decoder", "upsampler_0"), start=1)
    ]
    assert all(p.num_stages == 3 and p.seconds > 0 for p in seen)
    # One image alone comes from the same batch, to the bit, whichever way weights are read.
    for only, read in ((1, None), (2, lambda parts: tiny_bundle)):
        one = text_to_image(tiny_bundle, PROMPTS, seed=3, batch_size=2, only=only, load_weights=read)
        np.testing.assert_array_equal(one, split[only : only + 1])
    with pytest.raises(ValueError, match="there is no image 3 among 3"):
        text_to_image(tiny_bundle, PROMPTS, seed=3, only=3)


def test_stops_at_a_size(tiny_bundle):
    assert text_to_image(tiny_bundle, PROMPTS, seed=3, stop_at=8).shape == (3, 8, 8, 3)
    with pytest.raises(UserError, match="stop_at is 12; bundle tiny makes 8, 16 px"):
        text_to_image(tiny_bundle, PROMPTS, seed=3, stop_at=12)


def test_a_prompt_that_is_too_long(tiny_bundle):
    long = "a red circle " * 30
    with pytest.warns(TruncationWarning) as caught:
        text_to_image(tiny_bundle, [long, "a ring", long], seed=0, stop_at=8)
    message = str(caught[0].message)
    # Once, though two of the captions are the same.
    assert len(caught) == 1 and message.startswith(f"the prompt {long!r} is too long; this was cut: '")
    cut = message.rpartition("cut: '")[2].rstrip("'")
    assert cut and long.strip().endswith(cut)


def test_a_prompt_that_fits_is_not_warned_about(tiny_bundle):
    with warnings.catch_warnings(action="error"):
        text_to_image(tiny_bundle, PROMPTS, seed=0, stop_at=8)


@pytest.mark.parametrize(
    ("captions", "options", "line"),
    [
        ([], {}, "the prompt is empty; say what to draw"),
        (["a ring", " \n"], {}, "the prompt is empty"),
        (["a ring"], {"seed": -1}, "seed is -1; it must be at least 0 and below 2"),
        (["a ring"], {"seed": 2**32}, "seed is 4294967296"),
        (["a ring"], {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_requests_that_make_no_sense(tiny_bundle, captions, options, line):
    with pytest.raises(UserError, match=f"^{line}"):
        text_to_image(tiny_bundle, captions, **{"seed": 0} | options)


def test_a_bundle_without_a_tokenizer(tiny_bundle):
    with pytest.raises(UserError, match="bundle tiny has no tokenizer; use one that reads captions"):
        text_to_image(dataclasses.replace(tiny_bundle, tokenizer=None), ["a ring"], seed=0)
