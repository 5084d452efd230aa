from collections import Counter

import numpy as np
import pytest

from unclip_jax.data.negatives import hard_negative

GROUPS = ("red green blue", "circle square", "left right", "above below")


def negatives(caption, groups=GROUPS, count=60):
    rng = np.random.default_rng(0)
    return Counter(hard_negative(caption, groups, rng) for _ in range(count))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "a red circle above a blue square",
            {
                "a blue circle above a red square",
                "a red square above a blue circle",
                "a red circle below a blue square",
            },
        ),
        ("to the left of a star there is a ring", {"to the right of a star there is a ring"}),
        ("a star on the left and a ring on the right", {"a star on the right and a ring on the left"}),
        ("a red star by a red ring", {None}),
        ("reddish, greenish, aboveboard", {None}),
        ("", {None}),
    ],
)
def test_says_something_else_in_the_same_words(caption, expected):
    found = negatives(caption)
    assert set(found) == expected
    assert min(found.values()) > 10


def test_two_of_three_words_change_places():
    found = negatives("red, green and blue", ("red green blue",))
    assert set(found) == {"green, red and blue", "blue, green and red", "red, blue and green"}


def test_every_place_of_a_word_changes():
    assert set(negatives("red, red, green", ("red green blue",))) == {"green, green, red"}


def test_words_are_words_and_no_expressions():
    assert set(negatives("a b.c d", ("b.c d",))) == {"a d b.c"}
    assert set(negatives("a bxc d", ("b.c d e",))) == {None}


def test_the_same_draw_gives_the_same_negative():
    assert negatives("a red circle above a blue square") == negatives("a red circle above a blue square")
