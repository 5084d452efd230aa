import numpy as np

from unclip_jax.data import Record
from unclip_jax.data.survey import survey
from unclip_jax.text.tokenizer import Tokenizer


def record(number, width=20, height=10, captions=None):
    image = np.full((height, width, 3), number, np.uint8)
    return Record(image=image, captions=captions or (f"picture {number}",), name=str(number))


def test_what_is_said_of_a_source():
    source = [record(i) for i in range(6)] + [record(5), record(7, 30, 30, ("one", "one two three", "picture 5"))]
    found = survey(source, 100)
    assert found.num_records == 8 and found.tokens is None
    assert found.sides.tolist() == [10] * 7 + [30] and found.aspects.tolist() == [2.0] * 7 + [1.0]
    assert (found.repeated_captions, found.repeated_images) == (2, 1)
    said = list(found.lines())
    assert said[0] == "8 records; of 8 of them, evenly spaced:"
    assert said[1] == "shorter side 10 to 30 (median 10) px, aspect 1.00 to 2.00 (median 2.00)"
    assert said[2] == "captions of 1 to 3 (median 2) words, 1 to 3 (median 1) for an image"
    assert said[3:5] == ["2 of 10 captions repeat another", "1 of 8 images repeat another"]
    assert said[5].startswith("read and decoded at ") and len(said) == 6


def test_records_are_spaced_evenly_and_none_is_read_twice():
    read = []

    class Source:
        def __len__(self):
            return 1001

        def __getitem__(self, index):
            read.append(index)
            return record(index % 256)

    assert survey(Source(), 5, see=lambda each: read.append(each.name)).num_records == 1001
    assert read[::2] == [0, 250, 500, 750, 1000]


def test_tokens_and_what_does_not_fit():
    tokenizer = Tokenizer.train(["picture 1", "no"] * 4, 270)
    source = [record(1, captions=("no",)), record(2, captions=("no no no no no no no no",))]
    found = survey(source, 2, tokenizer)
    assert found.tokens is not None and found.tokens.min() >= 3 and found.tokens.max() > 8
    assert any(line.endswith("; 50.0% do not fit into 8") for line in found.lines(8))


def test_no_captions():
    assert "no captions" in list(survey([record(1, captions=("",))], 3).lines())
