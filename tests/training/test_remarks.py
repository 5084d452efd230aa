"""What is said of the data before a run trains on them."""

import contextlib
import dataclasses
import re

import numpy as np
import pytest

from tests import tiny
from tests.stages.examples import example
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.records import Record
from unclip_jax.training.remarks import of_batch, of_sizes, remarked

CLIP, UPSAMPLER = (example(kind).stage for kind in ("clip", "upsampler"))
SPEC = BatchSpec(batch_size=8, sizes=(16,), context=tiny.CONTEXT)


@pytest.mark.parametrize(
    ("stage", "batch_size", "records", "accumulate", "said"),
    [
        (CLIP, 8, 8, 1, []),
        (UPSAMPLER, 8, 8, 8, []),
        (UPSAMPLER, 1, 1, 1, []),
        (UPSAMPLER, 64, 6, 1, ["6 pictures: each is in it 10.7 times; --data.batch-size 6 has each once"]),
        (CLIP, 64, 6, 1, ["64 is more than the data, 6 pictures: .* the loss takes copies of a pair for negatives;"]),
        (UPSAMPLER, 8, 1, 1, ["1 picture: each is in it 8 times"]),
        (CLIP, 8, 1, 1, ["a pair that is compared with no other teaches CLIP nothing; train on more pictures"]),
        (CLIP, 1, 6, 1, ["a pair that is compared with no other teaches CLIP nothing"]),
        (CLIP, 8, 8, 8, ["a pair that is compared with no other teaches CLIP nothing"]),
    ],
)
def test_sizes(stage, batch_size, records, accumulate, said):
    found = list(of_sizes(stage, dataclasses.replace(SPEC, batch_size=batch_size), records, accumulate))
    assert len(found) == len(said)
    for line, pattern in zip(found, said, strict=True):
        assert re.search(pattern, line), line


def test_a_hard_negative_is_something_to_compare_with():
    assert list(of_sizes(CLIP, dataclasses.replace(SPEC, batch_size=1, negatives=("red blue",)), 6, 1)) == []


def records(captions, pictures):
    images = [record.image for record in tiny.records()]
    return [Record(image=images[i], captions=(c,), name=c) for c, i in zip(captions, pictures, strict=True)]


@pytest.mark.parametrize(
    ("captions", "pictures", "said"),
    [
        ("abcdefgh", range(8), None),
        ("aaaaefgh", range(8), "of 8 pairs of the first batch 3 repeat the caption of another"),
        (
            "abcdefgh",
            (0, 0, 2, 3, 4, 5, 6, 7),
            "1 repeat the picture of another, and the loss takes them for negatives",
        ),
        ("aacdefgh", (0, 0, 2, 3, 4, 5, 6, 7), "1 repeat the caption and 1 repeat the picture of another"),
    ],
)
def test_copies_among_the_pairs_of_a_batch(capsys, captions, pictures, said):
    def run(stage):
        source = records(captions, pictures)
        made = batches(source, tiny.tokenizer(), SPEC)
        with contextlib.closing(remarked(made, stage, SPEC, len(source))) as iterator:
            for _ in range(2):
                next(iterator)
        with pytest.raises(StopIteration):
            next(made)
        return capsys.readouterr().err

    told = run(CLIP)
    assert told == "" if said is None else said in told and told.count("\n") == 1
    assert run(UPSAMPLER) == ""


def test_negatives_that_no_caption_has_words_for():
    spec = dataclasses.replace(SPEC, negatives=("left right",))
    pair = {"image_16": np.zeros((1, 16, 16, 3), np.uint8), "tokens": np.zeros((1, 48), np.int32)}
    (line,) = of_batch(CLIP, spec, 8, pair | {"has_negative": np.array([False])})
    assert "no caption of the first 1 has the words of --negatives (left right)" in line
    assert list(of_batch(CLIP, spec, 8, pair | {"has_negative": np.array([True])})) == []
