"""What a run is judged by while it trains: the same held-out examples again and again, and as many training ones.

(1) key_i = fold_in(fold_in(key(SEED), 0), i)        i = number of the example among those evaluated

so timesteps, noise and all else that is random are the same at each evaluation, for held-out and training examples, and
on any number of devices and hosts. What is measured is the stage's (`Stage.measure`, `Stage.score`), of the moving
average, with nothing dropped.

    held_out/NAME, train_eval/NAME        in metrics.jsonl, TensorBoard and wandb
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from unclip_jax.data.held_out import first
from unclip_jax.data.pipeline import BatchSpec
from unclip_jax.data.records import KeyedSource
from unclip_jax.parallel.layout import BATCH_AXES
from unclip_jax.parallel.step import jit_rows, put_batch
from unclip_jax.stages.stage import Stage
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.stage_configs import Config
from unclip_jax.training.step import example_keys
from unclip_jax.training.tracker import HELD_OUT, TRAINING, Scores

SEED = 20_260_101
"""Of equation (1): no run's own."""

Examples = Callable[[int], list[dict[str, np.ndarray]]]
"""From the size of a global batch to this process's rows of the batches that hold all examples, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """What a run evaluates.

    Attributes:
        every: steps between evaluations; the last step is evaluated as well.
        patience: see `tracker.Tracker`.
        count: examples of either kind.
        most_rows: examples of a global batch that fit the memory.
        examples: {HELD_OUT: ..., TRAINING: ...}; they are read once, and kept.
        what: says what is evaluated, in words that change with it.
    """

    every: int
    patience: int
    count: int
    most_rows: int
    examples: Mapping[str, Examples]
    what: str

    def due(self, step: int, last_step: int) -> bool:
        """Return whether a step is evaluated."""
        return step % self.every == 0 or step == last_step


class Evaluator:
    """Measures a stage on the examples; every process calls it at the same steps. It compiles once."""

    def __init__(
        self, stage: Stage, validation: Validation, mesh: Mesh, param_shardings: PyTree, frozen_shardings: PyTree
    ):
        self._stage, self._count = stage, validation.count
        self._mesh, self._shardings = mesh, param_shardings
        parts = math.lcm(math.prod(mesh.shape[axis] for axis in BATCH_AXES), jax.process_count())
        fitting = max(min(validation.most_rows, validation.count + parts - 1) // parts, 1)
        self._rows = fitting * parts
        self._examples = validation.examples
        self._batches: dict[str, list[dict[str, np.ndarray]]] = {}
        self._measure = jit_rows(self._measure_rows, mesh, param_shardings, frozen_shardings)

    def __call__(self, params: PyTree, frozen: PyTree) -> dict[str, Scores]:
        """Return the scores of held-out and of training examples; what no example has a value for is left out."""
        # The pmap backend leaves the parameters in another place.
        params = jax.device_put(params, self._shardings)
        return {name: self._scores(name, params, frozen) for name in self._examples}

    def _measure_rows(self, params: PyTree, frozen: PyTree, batch: dict[str, Array], first: Int[Array, ""]) -> PyTree:
        rows = first + jnp.arange(len(jax.tree.leaves(batch)[0]))
        return self._stage.measure(params, frozen, batch, example_keys(SEED, jnp.int32(0), rows))

    def _scores(self, name: str, params: PyTree, frozen: PyTree) -> Scores:
        if name not in self._batches:
            self._batches[name] = self._examples[name](self._rows)
        parts = []
        for number, batch in enumerate(self._batches[name]):
            first = jnp.int32(number * self._rows)
            parts.append(jax.device_get(self._measure(params, frozen, put_batch(batch, self._mesh), first)))
        # The last batch may hold more than was asked for.
        metrics, arrays = jax.tree.map(lambda *each: np.concatenate(each)[: self._count], *parts)
        means = {each: _mean(*pair) for each, pair in metrics.items()}
        scores = means | self._stage.score(arrays)
        return {each: value for each, value in sorted(scores.items()) if math.isfinite(value)}


def validation_of(
    config: Config, spec: BatchSpec, training: KeyedSource, held_out: KeyedSource, tokenizer: Tokenizer | None
) -> Validation:
    """Return the evaluation of a run whose training batches are as `spec` says, nothing mirrored."""
    wanted = config.validation
    sources = {HELD_OUT: first(held_out, wanted.examples), TRAINING: first(training, wanted.examples)}
    count = min(map(len, sources.values()))
    data = dataclasses.replace(config.data, num_workers=0)
    fixed = dataclasses.replace(spec, flip=False, seed=0)

    def read(source: KeyedSource, rows: int) -> list[dict[str, np.ndarray]]:
        processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        spec = dataclasses.replace(fixed, batch_size=rows)
        with contextlib.closing(data.batches(source, tokenizer, spec, 0, **processes)) as batches:
            return list(itertools.islice(batches, math.ceil(count / rows)))

    chosen = f"share {wanted.share:g}" if wanted.share else f"{wanted.split or wanted.source}"
    return Validation(
        every=wanted.every or config.run.save_every,
        patience=wanted.patience,
        count=count,
        most_rows=spec.batch_size // config.optim.accumulate,
        # The same number of either, so that recalls compare.
        examples={name: functools.partial(read, first(source, count)) for name, source in sources.items()},
        what=f"{count} examples, {chosen}",
    )


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    weights = weights.astype(np.float64)
    total = weights.sum()
    return float(np.sum(np.where(weights > 0, values, 0.0) * weights) / total) if total > 0 else math.nan
