"""What a person should know of a run's data before the run takes its time over them: a line each, at the start.

Nothing of it keeps a run from training, and nothing of it can be seen in its loss.
"""

import contextlib
import sys
from collections.abc import Generator, Iterator

import jax
import numpy as np

from unclip_jax.data.pipeline import BatchSpec
from unclip_jax.stages.contrastive import ContrastiveStage
from unclip_jax.stages.stage import Stage

NOTABLE = 0.05
"""Share of a batch that has to be repeated before it is worth a line."""


def of_sizes(stage: Stage, spec: BatchSpec, num_records: int, microbatches: int) -> Iterator[str]:
    """Yield what the sizes alone say."""
    contrastive = isinstance(stage, ContrastiveStage)
    if contrastive and min(spec.batch_size // microbatches, num_records) == 1 and not spec.negatives:
        yield (
            "a pair that is compared with no other teaches CLIP nothing; "
            "train on more pictures, raise --data.batch-size, or lower --optim.accumulate"
        )
    elif spec.batch_size > num_records:
        data = f"the data, {num_records} picture{'s' * (num_records > 1)}"
        harm = ", and the loss takes copies of a pair for negatives" if contrastive else ""
        each = f"{spec.batch_size / num_records:.3g} times"
        yield (
            f"a batch of {spec.batch_size} is more than {data}: each is in it {each}{harm}; "
            f"--data.batch-size {num_records} has each once"
        )


def of_batch(stage: Stage, spec: BatchSpec, num_records: int, batch: dict[str, np.ndarray]) -> Iterator[str]:
    """Yield what the first batch shows, which may be one host's rows."""
    if not isinstance(stage, ContrastiveStage):
        return
    pictures = batch[f"image_{stage.network.image_tower.image_size}"]
    count = len(pictures)
    found = []
    for name, rows in {"caption": batch["tokens"], "picture": pictures}.items():
        repeated = count - len({row.tobytes() for row in rows})
        if repeated >= NOTABLE * count:
            found.append(f"{repeated} repeat the {name}")
    if found and spec.batch_size <= num_records:
        copies = f"of {count} pairs of the first batch {' and '.join(found)} of another"
        yield f"{copies}, and the loss takes them for negatives"
    if "has_negative" in batch and not batch["has_negative"].any():
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
