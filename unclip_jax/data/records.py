"""Records: random access to images with captions, whatever they are stored in."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

NO_IMAGE = np.zeros((0, 0, 3), np.uint8)
"""Of a record that has embeddings alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One example.

    Attributes:
        image: RGB at the size it is stored in; `NO_IMAGE` where the source has none.
        captions: what it shows, in other words; one of them is drawn for each epoch. ("",) where the source has none.
        name: says where the record came from: a relative path, or "<split>/<number>".
        key: what it is called however it is stored, as "000000012" of 000000012.jpg; embeddings are joined by it.
            "" where the source has no such thing.
        z_i, z_t: CLIP's embeddings of the image and of the one caption, where they were computed before.
    """

    image: UInt8[np.ndarray, "h w 3"]
    captions: tuple[str, ...]
    name: str
    key: str = ""
    z_i: Float[np.ndarray, " d"] | None = None
    z_t: Float[np.ndarray, " d"] | None = None


@runtime_checkable
class Source(Protocol):
    """A random-access sequence of records in a fixed order. Picklable, and safe to read from many threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


Report = dict[str, int | dict[str, str]]
"""{"images": how many there are, "bad": {what is left out as unusable, as far as it was met: why}}"""


class KeyedSource(Source, Protocol):
    """A source that knows its records' keys without reading them."""

    def key(self, index: int) -> str:
        """Return the key of a record."""
        ...

    def report(self) -> Report:
        """Report what there is, and what was left out so far."""
        ...
