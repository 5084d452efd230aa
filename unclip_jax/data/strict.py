"""Records as they are, in order, bad ones among them: for work that goes over a source once and says what it left out.

source[i]       goes on to the next good record
reading(i)      is record i, or what is wrong with it
"""

import dataclasses
from collections.abc import Generator, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unclip_jax.core.extras import needs
from unclip_jax.data.records import KeyedSource
from unclip_jax.data.skipping import BadRecordError, SkippingSource
from unclip_jax.images.transforms import BrokenImageError, fit


@dataclasses.dataclass(frozen=True)
class Reading:
    """A record with its image at one size; or, of a bad one, the reason in `fault` and neither image nor captions."""

    key: str
    name: str
    image: UInt8[np.ndarray, "h w 3"] | None = None
    captions: tuple[str, ...] = ()
    fault: str | None = None


@dataclasses.dataclass(frozen=True)
class Blocks(Sequence[int]):
    """The numbers of the records in some blocks of `size` records, the last of which may have fewer, out of `total`."""

    numbers: tuple[int, ...]
    size: int
    total: int

    def block(self, number: int) -> range:
        """Return the records of a block."""
        return range(number * self.size, min((number + 1) * self.size, self.total))

    def __len__(self) -> int:
        return sum(len(self.block(number)) for number in self.numbers)

    def __getitem__(self, index):
        # All blocks but the last of all are full, and that one can only be the last of these.
        return self.block(self.numbers[index // self.size])[index % self.size]


def readings(
    source: KeyedSource, records: Sequence[int], size: int, *, num_threads: int, num_workers: int
) -> Generator[Reading, None, None]:
    """Yield the records with these numbers, with images of `size` px; close it to stop its threads and processes."""
    with needs("data"):
        import grain

        from unclip_jax.data.pipeline import mark_flags_as_parsed
    dataset = grain.MapDataset.source(records).map(_Reader(source, size))
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=64))
    if num_workers:
        mark_flags_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _Reader:
    source: KeyedSource
    size: int

    def __call__(self, index: int) -> Reading:
        source, name = self.source, ""
        try:
            if isinstance(source, SkippingSource):
                name = source.name(index)
                record = source.read(index)
            else:
                record = source[index]
                key = source.key(index)
                if record.key != key:
                    # It went on to the next one, and has said why.
                    return Reading(key, key, fault="cannot be used")
            image = fit(Image.fromarray(record.image), self.size)
            for word in (record.key, record.name):
                word.encode()
            return Reading(record.key, record.name, image, record.captions)
        except UnicodeEncodeError:
            return Reading("", name, fault="its name is no text")
        except (BadRecordError, BrokenImageError) as error:
            return Reading("", name, fault=str(error).removeprefix(f"{name}: "))
