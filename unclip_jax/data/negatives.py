"""Hard negatives: captions that use a caption's own words to say something else (NegCLIP, 2210.01936, section 5).

A bag of words is enough for a contrastive loss over random pairs, and so CLIP does not distinguish "a red circle above
a blue square" from the same with the colours exchanged, or "below". Given both, it has to learn what belongs to what.
"""

import re
from collections.abc import Sequence

import numpy as np


def hard_negative(caption: str, groups: Sequence[str], rng: np.random.Generator) -> str | None:
    """Return a caption that says something else of the same things, or None if the groups do not allow one.

    Args:
        groups: words of one kind, with spaces between: "red green blue". Two different words of a group change places
            throughout the caption; one of a group of two, such as "left right", becomes the other.
    """
    exchanges = []
    for group in groups:
        words = group.split()
        present = list(dict.fromkeys(re.findall(rf"\b(?:{'|'.join(map(re.escape, words))})\b", caption)))
        if len(words) == 2 and present:
            exchanges.append(words)
        elif len(present) > 1:
            exchanges.append([present[i] for i in rng.choice(len(present), 2, replace=False)])
    if not exchanges:
        return None
    one, other = exchanges[int(rng.integers(len(exchanges)))]
    return re.sub(
        rf"\b(?:{re.escape(one)}|{re.escape(other)})\b",
        lambda found: other if found[0] == one else one,
        caption,
    )
