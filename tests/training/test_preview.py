"""Sheets of what a stage has to show, with words."""

import jax
import numpy as np
import pytest

from tests import tiny
from tests.stages.examples import example
from tests.training.toy import Toy
from unclip_jax.training.preview import captions_of, first_examples, make_preview

pytestmark = pytest.mark.usefixtures("quick_compile")


def batches(batch):
    return lambda start: (each for each in [jax.tree.map(np.asarray, batch)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "prior", "upsampler"])
def test_a_sheet_for_each_source(kind):
    stage, params, frozen, batch = example(kind)
    if kind == "upsampler":
        batch = tiny.batch(16, sizes=(16,))
    other = jax.tree.map(lambda x: x[::-1], batch)
    sources = {"training": batches(batch), "held out": batches(other)}
    both = make_preview(stage, sources, tiny.tokenizer())(params, frozen, 1)
    one = make_preview(stage, {"training": sources["training"]}, tiny.tokenizer())(params, frozen, 1)
    assert both.dtype == np.uint8 and both.shape[0] > 1.8 * one.shape[0] and both.shape[1] == one.shape[1]
    np.testing.assert_array_equal(both[: len(one) - 6], one[:-6])
    assert (both[len(one) :] < 100).any()


def test_the_words_of_a_sheet_are_the_captions():
    batch = tiny.batch(4)
    captions = captions_of(first_examples(batches(batch), 4), tiny.tokenizer())
    assert len(set(captions)) > 1 and set(captions) <= {record.captions[0] for record in tiny.records()}
    assert captions_of(batch, None) == captions_of({"image_8": batch["image_8"]}, tiny.tokenizer()) == [""] * 4


def test_a_stage_with_nothing_to_show():
    assert make_preview(Toy(), {}, None) is None
