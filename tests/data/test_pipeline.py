import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.records import Record
from unclip_jax.images.transforms import fit
from unclip_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class NumberedSource:
    """Random images whose captions are their numbers."""

    length: int
    height: int = 20
    width: int = 26

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        image = np.random.default_rng(index).integers(0, 256, (self.height, self.width, 3), np.uint8)
        return Record(image=image, captions=(str(index),), name=str(index))


class BrokenSource(NumberedSource):
    def __getitem__(self, index: int) -> Record:
        raise UserError(f"{index}.png: cannot be read")


SOURCE = NumberedSource(50)
SPEC = BatchSpec(batch_size=8, sizes=(8, 16), crop=5, context=6, flip=True, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([str(i) for i in range(50)] * 2, 300)


def take(count, *args, **options):
    with contextlib.closing(batches(*args, **options)) as iterator:
        return list(itertools.islice(iterator, count))


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def joined(hosts):
    """Global batches from the batches of each host in order."""
    return [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for parts in zip(*hosts, strict=True)
    ]


def numbers(batch, tokenizer):
    """The record numbers of a batch, from its tokens."""
    encoded = tokenizer.encode([str(i) for i in range(50)], batch["tokens"].shape[1]).tokens.tolist()
    return [encoded.index(row) for row in batch["tokens"].tolist()]


def test_keys_shapes_and_types(tokenizer):
    (batch,) = take(1, SOURCE, tokenizer, SPEC)
    assert {key: (value.shape, str(value.dtype)) for key, value in batch.items()} == {
        "image_8": ((8, 8, 8, 3), "uint8"),
        "image_crop": ((8, 5, 5, 3), "uint8"),
        "tokens": ((8, 6), "int32"),
        "mask": ((8, 6), "bool"),
    }
    (batch,) = take(1, SOURCE, None, BatchSpec(batch_size=2, sizes=(16, 8)))
    assert {key: value.shape for key, value in batch.items()} == {
        "image_16": (2, 16, 16, 3),
        "image_8": (2, 8, 8, 3),
    }


def test_hard_negatives_are_of_their_captions(tokenizer):
    spec = BatchSpec(batch_size=8, sizes=(8,), context=6, negatives=("1 2", "3 4 5"))
    captions = ("1", "3 and 5", "7", "4")
    source = [Record(image=SOURCE[0].image, captions=(caption,), name=caption) for caption in captions]
    (batch,) = take(1, source, tokenizer, spec)
    assert {key: (value.shape, str(value.dtype)) for key, value in batch.items() if "negative" in key} == {
        "negative_tokens": ((8, 6), "int32"),
        "has_negative": ((8,), "bool"),
    }
    encoded = {caption: tokenizer.encode([caption], 6).tokens[0].tolist() for caption in (*captions, "2", "5 and 3")}
    expected = {"1": ("2", True), "3 and 5": ("5 and 3", True), "7": ("7", False), "4": ("4", False)}
    found = [row.tolist() for row in batch["tokens"]]
    for row, tokens in enumerate(found):
        negative, has = expected[next(caption for caption in captions if encoded[caption] == tokens)]
        assert batch["negative_tokens"][row].tolist() == encoded[negative]
        assert batch["has_negative"][row] == has


def test_images_and_captions_belong_together(tokenizer):
    spec = BatchSpec(batch_size=8, sizes=(8, 16), context=6)
    (batch,) = take(1, SOURCE, tokenizer, spec)
    for row, number in enumerate(numbers(batch, tokenizer)):
        image = Image.fromarray(SOURCE[number].image)
        for size in spec.sizes:
            np.testing.assert_array_equal(batch[f"image_{size}"][row], fit(image, size))


def test_each_epoch_holds_every_record_once_in_a_new_order(tokenizer):
    spec = BatchSpec(batch_size=10, sizes=(4,), context=6)
    epochs = np.array([numbers(b, tokenizer) for b in take(15, SOURCE, tokenizer, spec)]).reshape(3, 50)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(50), (3, 50)))
    orders = {tuple(order) for order in [*epochs, range(50)]}
    assert len(orders) == 4
    other_seed = dataclasses.replace(spec, seed=1)
    assert numbers(take(1, SOURCE, tokenizer, other_seed)[0], tokenizer) != list(epochs[0, :10])


def test_crops_are_squares_of_the_largest_size_at_random_places():
    spec = BatchSpec(batch_size=16, sizes=(16,), crop=14)
    source = NumberedSource(1)
    whole = fit(Image.fromarray(source[0].image), 16)
    places = {(y, x): whole[y : y + 14, x : x + 14] for y in range(3) for x in range(3)}
    crops = np.concatenate([batch["image_crop"] for batch in take(6, source, None, spec)])
    found = [next(place for place, crop in places.items() if (crop == image).all()) for image in crops]
    assert set(found) == set(places)


def test_about_half_of_the_images_are_mirrored_at_every_size():
    source = NumberedSource(1, height=16, width=16)
    whole = Image.fromarray(source[0].image)
    mirrored = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flips = []
    for batch in take(4, source, None, BatchSpec(batch_size=16, sizes=(8, 16), flip=True)):
        for small, large in zip(batch["image_8"], batch["image_16"], strict=True):
            flipped = bool((large == np.array(mirrored)).all())
            np.testing.assert_array_equal(large, np.array(mirrored if flipped else whole))
            np.testing.assert_array_equal(small, fit(mirrored if flipped else whole, 8))
            flips.append(flipped)
    assert 16 <= sum(flips) <= 48


@pytest.mark.parametrize("process_count", [2, 4])
def test_hosts_share_the_same_global_batches(tokenizer, process_count):
    expected = take(9, SOURCE, tokenizer, SPEC)  # past the end of the first epoch
    hosts = [
        take(9, SOURCE, tokenizer, SPEC, process_index=p, process_count=process_count) for p in range(process_count)
    ]
    assert_equal(joined(hosts), expected)


@pytest.mark.parametrize("start_step", [1, 6, 7, 100])
def test_starting_at_a_step_goes_on_where_a_run_would_be(tokenizer, start_step):
    expected = take(start_step + 2, SOURCE, tokenizer, SPEC)[start_step:]
    assert_equal(take(2, SOURCE, tokenizer, SPEC, start_step=start_step), expected)
    hosts = [take(2, SOURCE, tokenizer, SPEC, start_step=start_step, process_index=p, process_count=2) for p in (0, 1)]
    assert_equal(joined(hosts), expected)


def test_threads_do_not_change_the_batches(tokenizer):
    expected = take(8, SOURCE, tokenizer, SPEC, num_threads=1)
    assert_equal(take(8, SOURCE, tokenizer, SPEC, num_threads=5), expected)
    assert_equal(take(8, SOURCE, tokenizer, SPEC, num_threads=0), expected)


@pytest.mark.slow
def test_worker_processes_do_not_change_the_batches(tokenizer):
    expected = take(5, SOURCE, tokenizer, SPEC, start_step=3)
    found = take(5, SOURCE, tokenizer, SPEC, start_step=3, num_workers=2)
    assert_equal(found, expected)
    assert all(type(value) is np.ndarray for batch in found for value in batch.values())


def test_a_dataset_smaller_than_a_batch_is_repeated(tokenizer):
    (batch,) = take(1, NumberedSource(3), tokenizer, BatchSpec(batch_size=9, sizes=(4,), context=6))
    assert sorted(numbers(batch, tokenizer)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize("length", [1, 3])
def test_one_example_a_host(tokenizer, length, process_count):
    source, spec = NumberedSource(length), dataclasses.replace(SPEC, batch_size=process_count)
    expected = take(5, source, tokenizer, spec)
    hosts = [
        take(5, source, tokenizer, spec, process_index=p, process_count=process_count) for p in range(process_count)
    ]
    assert_equal(joined(hosts), expected)
    assert_equal(take(2, source, tokenizer, spec, start_step=3), expected[3:])
    assert {batch["tokens"].shape for batch in expected} == {(process_count, 6)}


@dataclasses.dataclass(frozen=True)
class RenamedSource(NumberedSource):
    """Record i has the captions i, i + 10 and i + 20, or so many of these."""

    alternatives: int = 3

    def __getitem__(self, index: int) -> Record:
        captions = tuple(str(index + 10 * i) for i in range(self.alternatives))
        return dataclasses.replace(super().__getitem__(index), captions=captions)


@pytest.mark.slow
def test_one_of_several_captions_is_drawn_for_each_epoch(tokenizer):
    source = RenamedSource(10)
    found = take(30, source, tokenizer, dataclasses.replace(SPEC, batch_size=10))
    epochs = np.array([numbers(batch, tokenizer) for batch in found])
    drawn = np.array([row[np.argsort(row % 10)] for row in epochs]) // 10
    assert [set(column) for column in drawn.T] == [{0, 1, 2}] * 10
    assert 70 <= (drawn == 0).sum() <= 130
    # Images, crops and flips are those of one caption.
    one = take(30, RenamedSource(10, alternatives=1), tokenizer, dataclasses.replace(SPEC, batch_size=10))
    for several, single in zip(found, one, strict=True):
        np.testing.assert_array_equal(several["image_crop"], single["image_crop"])
        np.testing.assert_array_equal(several["image_8"], single["image_8"])


def test_which_caption_is_drawn_depends_on_no_host_and_no_start(tokenizer):
    source, spec = RenamedSource(10), dataclasses.replace(SPEC, negatives=("1 11 21", "2 12 22"))
    expected = take(6, source, tokenizer, spec)
    hosts = [take(6, source, tokenizer, spec, process_index=p, process_count=4, num_threads=3) for p in range(4)]
    assert_equal(joined(hosts), expected)
    assert_equal(take(3, source, tokenizer, spec, start_step=3), expected[3:])


def test_a_caption_that_is_no_text_is_named():
    source = [Record(image=SOURCE[0].image, captions=("a \ud83d circle",), name="deep/x.png")]
    with pytest.raises(UserError, match=r"deep/x\.png: the caption 'a .* holds half a surrogate pair"):
        take(1, source, Tokenizer.train(["a"], 300), SPEC)


def test_closing_early_or_unused_is_quiet(tokenizer):
    batches(SOURCE, tokenizer, SPEC).close()
    iterator = batches(SOURCE, tokenizer, SPEC)
    next(iterator)
    iterator.close()
    with pytest.raises(StopIteration):
        next(iterator)


def test_a_reading_error_reaches_the_caller_as_it_is():
    with pytest.raises(UserError, match=r"\d\.png: cannot be read"):
        take(1, BrokenSource(3), None, BatchSpec(batch_size=2, sizes=(4,)))


def test_what_makes_no_sense_is_refused(tokenizer):
    for options, message in [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sizes": ()}, r"sizes is \(\)"),
        ({"sizes": (8, 8)}, "different sizes"),
        ({"crop": 17}, "crop is 17"),
        ({"seed": -1}, "seed is -1"),
    ]:
        with pytest.raises(UserError, match=message):
            dataclasses.replace(SPEC, **options)
    with pytest.raises(UserError, match="8 is not a multiple of 3 hosts"):
        batches(SOURCE, tokenizer, SPEC, process_count=3)
    with pytest.raises(UserError, match="-1 workers of 2 threads"):
        batches(SOURCE, tokenizer, SPEC, num_workers=-1)
    with pytest.raises(UserError, match="0 workers of -1 threads"):
        batches(SOURCE, tokenizer, SPEC, num_threads=-1)
    with pytest.raises(UserError, match="no tokenizer"):
        batches(SOURCE, None, SPEC)
    with pytest.raises(UserError, match="no records"):
        batches(NumberedSource(0), tokenizer, SPEC)
