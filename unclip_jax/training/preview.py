"""Pictures that a run leaves behind while it trains: what its stage has to show of its first examples."""

import contextlib
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import PyTree, UInt8

from unclip_jax.core.typing import Params
from unclip_jax.images.labels import titled
from unclip_jax.parallel.distributed import gather_rows, to_host
from unclip_jax.stages.stage import Stage, Weights
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.loop import Batches, Preview


def make_preview(stage: Stage, sources: Mapping[str, Batches], tokenizer: Tokenizer | None) -> Preview | None:
    """Make the preview of a stage, one sheet for each of `sources` with its name above; None for a stage that has
    nothing to show.

    Args:
        sources: batches of whole images.
        tokenizer: says what the captions are; None for none.

    Every process of a run must call it, at the same steps.
    """
    if not stage.num_previewed:
        return None
    compiled = jax.jit(lambda params, frozen, batch: stage.preview(Weights(params, frozen), batch))
    examples = functools.cache(lambda name: first_examples(sources[name], stage.num_previewed))

    def preview(params: Params, frozen: PyTree, step: int) -> UInt8[np.ndarray, "h w 3"]:
        del step
        sheets = {}
        for name in sources:
            batch = examples(name)
            exhibit = jax.tree.map(to_host, compiled(params, frozen, batch))
            sheets[name] = exhibit.draw(captions_of(batch, tokenizer))
        return titled(sheets)

    return preview


def captions_of(batch: Mapping[str, np.ndarray], tokenizer: Tokenizer | None) -> Sequence[str]:
    """Return the captions of a batch; "" where it has none."""
    if tokenizer is None or "tokens" not in batch:
        return [""] * len(next(iter(batch.values())))
    return tokenizer.decode(batch["tokens"])


def first_examples(batches: Batches, count: int) -> dict[str, np.ndarray]:
    """Return the first `count` examples of a run: the same on every host. All of them must call it."""
    with contextlib.closing(batches(0)) as iterator:
        return {name: gather_rows(value[:count])[:count] for name, value in next(iterator).items()}
