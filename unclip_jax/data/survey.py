"""What a run would see of a source: sizes, captions, what repeats, how fast it is read."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np

from unclip_jax.data.records import Record, Source
from unclip_jax.text.tokenizer import Tokenizer

MOST_TOKENS = 1024
"""Context that captions are counted in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found.

    Attributes:
        num_records: of the source.
        sides: [n] shorter side in px of the images that were read, evenly spaced over the source.
        aspects: [n] longer side over the shorter one.
        words: [m] of every caption.
        tokens: [m] of every caption, begin and end among them; None without a tokenizer.
        alternatives: [n] captions of each image.
        repeated_captions: captions, of m, that are there already.
        repeated_images: images, of n, that are there already, to the pixel.
        seconds: that reading took, on one thread.
    """

    num_records: int
    sides: np.ndarray
    aspects: np.ndarray
    words: np.ndarray
    tokens: np.ndarray | None
    alternatives: np.ndarray
    repeated_captions: int
    repeated_images: int
    seconds: float

    def lines(self, context: int | None = None) -> Iterator[str]:
        """Yield what a person should know, a line each; captions of more tokens than `context` are counted."""
        n, m = len(self.sides), len(self.words)
        yield f"{self.num_records:,} records; of {n:,} of them, evenly spaced:"
        yield f"shorter side {_spread(self.sides, ',.0f')} px, aspect {_spread(self.aspects, '.2f')}"
        if not self.words.any():
            yield "no captions"
        else:
            several = f", {_spread(self.alternatives, '.0f')} for an image" if (self.alternatives > 1).any() else ""
            yield f"captions of {_spread(self.words, ',.0f')} words{several}"
            if self.tokens is not None:
                cut = "" if context is None else f"; {(self.tokens > context).mean():.1%} do not fit into {context}"
                yield f"captions of {_spread(self.tokens, ',.0f')} tokens{cut}"
            if self.repeated_captions:
                yield f"{self.repeated_captions:,} of {m:,} captions repeat another"
        if self.repeated_images:
            yield f"{self.repeated_images:,} of {n:,} images repeat another"
        yield f"read and decoded at {n / max(self.seconds, 1e-9):,.0f} images/s on one thread"


def survey(
    source: Source,
    count: int,
    tokenizer: Tokenizer | None = None,
    see: Callable[[Record], None] = lambda record: None,
) -> Survey:
    """Read `count` records, evenly spaced, or all where there are fewer; `see` is called with each."""
    numbers = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int))
    sizes, captions, alternatives, images = [], [], [], set()
    seconds = 0.0
    for number in numbers.tolist():
        start = time.perf_counter()
        record = source[number]
        seconds += time.perf_counter() - start
        sizes.append(record.image.shape[:2])
        captions += record.captions
        alternatives.append(len(record.captions))
        images.add(hash(record.image.tobytes()))
        see(record)
    short, long = np.min(sizes, axis=1), np.max(sizes, axis=1)
    encoded = None if tokenizer is None else tokenizer.encode(captions, MOST_TOKENS).mask.sum(1)
    return Survey(
        num_records=len(source),
        sides=short,
        aspects=long / short,
        words=np.array([len(caption.split()) for caption in captions]),
        tokens=encoded,
        alternatives=np.array(alternatives),
        repeated_captions=len(captions) - len(set(captions)),
        repeated_images=len(numbers) - len(images),
        seconds=seconds,
    )


def _spread(values: np.ndarray, form: str) -> str:
    """Return "2 to 40 (median 9)"; one number where all are the same."""
    low, middle, high = (format(float(each), form) for each in (values.min(), np.median(values), values.max()))
    return low if low == high else f"{low} to {high} (median {middle})"
