"""Records to batches: the same global batches on any number of hosts, workers and threads.

    stream  = shuffle(source, seed), again and again with a new order each epoch
    example = transform(stream[g], rng(seed, g))                     g = index in the global stream
    caption = captions[uniform of rng(seed, g)]                      where the record has several
    batch s of host p of P = examples s B + p B/P ... s B + (p+1) B/P - 1          B = global batch size

A run's cursor is therefore its step: starting at step N gives what an uninterrupted run would have read.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Generator

import numpy as np
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.data.negatives import hard_negative
from unclip_jax.data.records import Record, Source
from unclip_jax.images.transforms import resize, square_crop
from unclip_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """What a batch holds.

    Attributes:
        batch_size: examples in the global batch.
        sizes: image sizes in px; each gives a key "image_<size>", uint8 [b size size 3].
        crop: side in px of one random square of the image at the largest size, key "image_crop". It stands in
            for the whole image of that size, which is then not in the batch.
        context: tokens per caption, keys "tokens" int32 and "mask" bool [b context]; None for no captions.
        negatives: groups of words for `hard_negative`, keys "negative_tokens" int32 [b context] and "has_negative"
            bool [b]; () for none.
        embeddings: names of the precomputed embeddings, "z_i" and "z_t", and their width: keys float32 [b d].
        flip: mirrors half of the examples.
        seed: of the order, the crops, the flips, the captions and the negatives.
    """

    batch_size: int
    sizes: tuple[int, ...]
    crop: int | None = None
    context: int | None = None
    negatives: tuple[str, ...] = ()
    embeddings: tuple[tuple[str, int], ...] = ()
    flip: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must be 0 or more")
        some = self.sizes or self.embeddings
        if not some or min(self.sizes, default=1) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise UserError(f"sizes is {self.sizes}; give one or more different sizes in px")
        if self.crop is not None and not 1 <= self.crop <= max(self.sizes, default=0):
            raise UserError(f"crop is {self.crop}; give 1 ... {max(self.sizes, default=0)}, the largest of sizes")
        if self.flip and self.embeddings:
            raise UserError("stored embeddings are those of the images as they are; leave out --data.flip")

    def arrays(self, process_count: int = 1) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Return the shape and type of every array in one host's batch."""
        rows = self.batch_size // process_count
        sides = {f"image_{size}": size for size in self.sizes}
        if self.crop is not None:
            sides.pop(f"image_{max(self.sizes)}")
            sides["image_crop"] = self.crop
        shapes = {name: ((rows, side, side, 3), np.dtype(np.uint8)) for name, side in sides.items()}
        if self.context is not None:
            tokens = ((rows, self.context), np.dtype(np.int32))
            shapes |= {"tokens": tokens, "mask": ((rows, self.context), np.dtype(bool))}
            if self.negatives:
                shapes |= {"negative_tokens": tokens, "has_negative": ((rows,), np.dtype(bool))}
        return shapes | {name: ((rows, width), np.dtype(np.float32)) for name, width in self.embeddings}


def batches(
    source: Source,
    tokenizer: Tokenizer | None,
    spec: BatchSpec,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield this host's rows of every global batch from `start_step` on, without end.

    Args:
        tokenizer: needed where `spec.context` is given.
        num_workers: reader processes, for many cores; each takes seconds to start and imports the main
            module, which must be guarded by `if __name__ == "__main__"`.
        num_threads: reading threads (of each process); 0 reads when a batch is asked for.

    Returns a generator; close it (`contextlib.closing`) to stop its threads and processes.
    """
    if spec.batch_size % process_count:
        raise UserError(f"batch_size {spec.batch_size} is not a multiple of {process_count} hosts; make it one")
    if num_workers < 0 or num_threads < 0:
        raise UserError(f"{num_workers} workers of {num_threads} threads; give 0 or more of either")
    if spec.context is not None and tokenizer is None:
        raise UserError("the batch asks for tokens (context is given) but there is no tokenizer; give one")
    if not len(source):
        raise UserError("the dataset has no records; give one that has")
    with needs("data"):
        import grain

        from unclip_jax.data.host_slice import HostSlice
    dataset = grain.MapDataset.source(source).seed(spec.seed).shuffle().repeat()
    # Randomness must come before the split over hosts, while an index is still one in the global stream.
    dataset = dataset.random_map(functools.partial(_example, spec=spec, tokenizer=tokenizer))
    dataset = HostSlice(dataset, batch_size=spec.batch_size, process_index=process_index, process_count=process_count)
    # Nothing remains; with a remainder to allow for, Grain counts the batches of an endless stream in floating point.
    dataset = dataset.batch(spec.batch_size // process_count, drop_remainder=True)[start_step:]
    # A thread makes whole batches, so more threads than batches in the buffer would wait.
    dataset = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2, num_threads))
    )
    if num_workers:
        mark_flags_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    whole = dataset

    def generate() -> Generator[dict[str, np.ndarray], None, None]:
        with contextlib.closing(iter(whole)) as iterator:
            for batch in iterator:
                # Shared memory of the workers complains when the program ends while somebody holds a batch.
                yield {key: np.array(value) for key, value in batch.items()} if num_workers else batch

    return generate()


def _example(
    record: Record, rng: np.random.Generator, *, spec: BatchSpec, tokenizer: Tokenizer | None
) -> dict[str, np.ndarray]:
    example: dict[str, np.ndarray] = {}
    if spec.sizes:
        image = square_crop(Image.fromarray(record.image))
        if spec.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        example = {f"image_{size}": np.array(resize(image, size)) for size in spec.sizes}
    for name, _ in spec.embeddings:
        example[name] = getattr(record, name)
    if spec.crop is not None:
        whole = example.pop(f"image_{max(spec.sizes)}")
        top, left = rng.integers(0, max(spec.sizes) - spec.crop, size=2, endpoint=True)
        example["image_crop"] = whole[top : top + spec.crop, left : left + spec.crop]
    if spec.context is not None and tokenizer is not None:
        caption, *others = record.captions
        if others:
            # With one caption nothing is drawn, so that the draws after this one are as they were.
            caption = record.captions[int(rng.integers(len(record.captions)))]
        try:
            encoded = tokenizer.encode([caption], spec.context)
        except UserError as error:
            raise UserError(f"{record.name}: {error}") from error
        example |= {"tokens": encoded.tokens[0], "mask": encoded.mask[0]}
        if spec.negatives:
            negative = hard_negative(caption, spec.negatives, rng)
            example["negative_tokens"] = tokenizer.encode([negative or caption], spec.context).tokens[0]
            example["has_negative"] = np.array(negative is not None)
    return example


def mark_flags_as_parsed() -> None:
    """Mark absl's flags as parsed: Grain's worker processes read them, and a program without absl never parses them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
