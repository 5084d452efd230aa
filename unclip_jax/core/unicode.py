"""Whether a string is text.

Python's strings can hold half a surrogate pair alone, which is no character and which no tokenizer and no file takes:
JSON spells one "\\ud800", and bytes that are not UTF-8, on a command line or in the name of a file, become U+DC80 to
U+DCFF (PEP 383). What is text stays as it is here; tokenizers put it in NFC themselves.
"""

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def fault(text: str) -> str | None:
    """Say what keeps a string from being text, as in "is not UTF-8"; None for text."""
    found = _SURROGATE.search(text)
    if found is None:
        return None
    if found[0] >= "\udc80" and found[0] <= "\udcff":
        return "is not UTF-8"
    return f"holds half a surrogate pair, U+{ord(found[0]):04X}"


def printable(text: str) -> str:
    """Return `text` on one line that any terminal can print: control characters and surrogates as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
