"""What a person should know of a run's data before the run takes its time over them: a line each, at the start.

Nothing of it keeps a run from training, and nothing of it can be seen in its loss. What there is to say is the stage's.
"""

import contextlib
import sys
from collections.abc import Generator, Iterator

import jax
import numpy as np

from unclip_jax.data.pipeline import BatchSpec
from unclip_jax.stages.stage import Stage


def of_sizes(stage: Stage, spec: BatchSpec, num_records: int, microbatches: int) -> Iterator[str]:
    """Yield what the sizes alone say."""
    yield from stage.remarks_on_sizes(spec.batch_size, num_records, microbatches, bool(spec.negatives))


def of_batch(stage: Stage, spec: BatchSpec, num_records: int, batch: dict[str, np.ndarray]) -> Iterator[str]:
    """Yield what the first batch shows, which may be one host's rows."""
    # Of a batch that is larger than the data, its size has said it.
    yield from stage.remarks_on_batch(batch, repeated=spec.batch_size > num_records)
    if "has_negative" in batch and not batch["has_negative"].any():
        count = len(batch["has_negative"])
        yield f"no caption of the first {count} has the words of --negatives ({'; '.join(spec.negatives)}) to exchange"


def remarked(
    batches: Generator[dict[str, np.ndarray], None, None], stage: Stage, spec: BatchSpec, num_records: int
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield the batches as they are, and print what the first of them shows."""
    with contextlib.closing(batches):
        for number, batch in enumerate(batches):
            if number == 0:
                say(of_batch(stage, spec, num_records, batch))
            yield batch


def say(lines: Iterator[str]) -> None:
    """Print lines on stderr, from the first process alone."""
    if jax.process_index() == 0:
        for line in lines:
            print(line, file=sys.stderr)
