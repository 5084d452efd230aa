import json
import os

import pytest

from unclip_jax.core.unicode import fault, printable


@pytest.mark.parametrize("text", ["", "a red circle", "cïrcle 🟥", "e\u0301", "\ufffd", "\0"])
def test_text(text):
    assert fault(text) is None


def test_what_is_no_text():
    assert fault(os.fsdecode(b"caf\xe9")) == "is not UTF-8"
    assert fault(json.loads('"a \\ud83d circle"')) == "holds half a surrogate pair, U+D83D"
    assert fault(json.loads('"\\udfe5"')) == "holds half a surrogate pair, U+DFE5"


def test_printable_is_one_line_of_text():
    assert printable("cïrcle 🟥.png") == "cïrcle 🟥.png"
    assert printable("a\nb\x1b[31m\udce9.png") == "a\\nb\\x1b[31m\\udce9.png"
