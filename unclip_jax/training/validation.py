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
import importlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.data.held_out import first
from unclip_jax.data.pipeline import BatchSpec
from unclip_jax.data.records import KeyedSource
from unclip_jax.images.pixels import to_uint8
from unclip_jax.parallel.distributed import gather_rows
from unclip_jax.parallel.layout import BATCH_AXES
from unclip_jax.parallel.step import jit_rows, put_batch
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.stage import Stage, Weights
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.stage_configs import Config
from unclip_jax.training.step import example_keys
from unclip_jax.training.tracker import HELD_OUT, TRAINING, Scores

SEED = 20_260_101
"""Of equation (1): no run's own."""

Examples = Callable[[int], list[dict[str, np.ndarray]]]
"""From the size of a global batch to this process's rows of the batches that hold all examples, in order."""


Metric = Callable[[np.ndarray, np.ndarray, Sequence[str]], Mapping[str, float]]
"""(sampled images uint8 [n h w 3], the true ones, captions) -> scores by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """What is sampled, and by what it is judged.

    Attributes:
        metric: of images; every process calls it with the same ones.
        count: examples of either kind.
        examples: as those of `Validation`, of whole images.
        tokenizer: says what the captions are; None for none.
    """

    metric: Metric
    count: int
    examples: Mapping[str, Examples]
    tokenizer: Tokenizer | None


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
        judged: what is sampled besides; None for nothing.
    """

    every: int
    patience: int
    count: int
    most_rows: int
    examples: Mapping[str, Examples]
    what: str
    judged: Judged | None = None

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
        self._examples, self._judged = validation.examples, validation.judged
        self._read = functools.cache(lambda examples: examples(self._rows))
        self._measure = jit_rows(self._measure_rows, mesh, param_shardings, frozen_shardings)
        self._draw = jit_rows(self._draw_rows, mesh, param_shardings, frozen_shardings)

    def __call__(self, params: PyTree, frozen: PyTree) -> dict[str, Scores]:
        """Return the scores of held-out and of training examples; what no example has a value for is left out."""
        # The pmap backend leaves the parameters in another place.
        params = jax.device_put(params, self._shardings)
        return {
            name: self._scores(name, params, frozen) | self._verdict(name, params, frozen) for name in self._examples
        }

    def _measure_rows(self, params: PyTree, frozen: PyTree, batch: dict[str, Array], first: Int[Array, ""]) -> PyTree:
        rows = first + jnp.arange(len(jax.tree.leaves(batch)[0]))
        return self._stage.measure(params, frozen, batch, example_keys(SEED, jnp.int32(0), rows))

    def _draw_rows(self, params: PyTree, frozen: PyTree, batch: dict[str, Array], first: Int[Array, ""]) -> PyTree:
        rows = first + jnp.arange(len(jax.tree.leaves(batch)[0]))
        noise = self._stage.noise(jax.random.key(SEED), rows, SamplingSettings())
        return self._stage.draw(Weights(params, frozen), batch, noise)

    def _over(self, program: Callable[..., PyTree], examples: Examples, params: PyTree, frozen: PyTree) -> PyTree:
        """Return what a program makes of all examples, on the host; the last batch may hold more than was asked for."""
        parts = []
        for number, batch in enumerate(self._read(examples)):
            first = jnp.int32(number * self._rows)
            parts.append(jax.device_get(program(params, frozen, put_batch(batch, self._mesh), first)))
        return jax.tree.map(lambda *each: np.concatenate(each), *parts)

    def _scores(self, name: str, params: PyTree, frozen: PyTree) -> Scores:
        found = self._over(self._measure, self._examples[name], params, frozen)
        metrics, arrays = jax.tree.map(lambda each: each[: self._count], found)
        means = {each: _mean(*pair) for each, pair in metrics.items()}
        return _finite(means | self._stage.score(arrays))

    def _verdict(self, name: str, params: PyTree, frozen: PyTree) -> Scores:
        judged = self._judged
        if judged is None:
            return {}
        examples = judged.examples[name]
        drawn = self._over(self._draw, examples, params, frozen)
        true, sampled = (to_uint8(images[: judged.count]) for images in drawn)
        captions = [""] * len(true)
        if judged.tokenizer is not None and "tokens" in self._read(examples)[0]:
            tokens = np.concatenate([gather_rows(batch["tokens"]) for batch in self._read(examples)])
            captions = judged.tokenizer.decode(tokens[: judged.count])
        found = judged.metric(sampled, true, captions)
        return _finite({f"sampled_{each}": float(value) for each, value in found.items()})


def _finite(scores: Mapping[str, float]) -> Scores:
    return {name: value for name, value in sorted(scores.items()) if math.isfinite(value)}


def metric_of(name: str) -> Metric:
    """Return the function "package.module:function"; UserError where there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        advice = "give package.module:function, as unclip_jax.eval.shapes.cases:read_captions"
        raise UserError(f"validation.metric is {name!r}, and there is no such function ({error}); {advice}") from error
    return found


def validation_of(
    config: Config, spec: BatchSpec, training: KeyedSource, held_out: KeyedSource, tokenizer: Tokenizer | None
) -> Validation:
    """Return the evaluation of a run whose training batches are as `spec` says, nothing mirrored.

    Raises UserError for a metric that there is not, and for one of images where the stage writes none.
    """
    wanted = config.validation
    sources = {HELD_OUT: first(held_out, wanted.examples), TRAINING: first(training, wanted.examples)}
    count = min(map(len, sources.values()))
    data = dataclasses.replace(config.data, num_workers=0)
    fixed = dataclasses.replace(spec, flip=False, seed=0)
    few = min(count, wanted.sampled)

    def read(source: KeyedSource, count: int, fixed: BatchSpec, rows: int) -> list[dict[str, np.ndarray]]:
        processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        spec = dataclasses.replace(fixed, batch_size=rows)
        with contextlib.closing(data.batches(source, tokenizer, spec, 0, **processes)) as batches:
            return list(itertools.islice(batches, math.ceil(count / rows)))

    # The same number of either, so that recalls compare.
    measured = {name: functools.partial(read, first(source, count), count, fixed) for name, source in sources.items()}
    judged = None
    if wanted.metric:
        if config.stage().image_size is None:
            raise UserError(f"validation.metric judges images, and a {config.kind} makes none; leave it out")
        whole = dataclasses.replace(fixed, crop=None)
        drawn = {name: functools.partial(read, first(source, few), few, whole) for name, source in sources.items()}
        judged = Judged(metric=metric_of(wanted.metric), count=few, examples=drawn, tokenizer=tokenizer)
    chosen = f"share {wanted.share:g}" if wanted.share else f"{wanted.split or wanted.source}"
    return Validation(
        every=wanted.every or config.run.save_every,
        patience=wanted.patience,
        count=count,
        most_rows=spec.batch_size // config.optim.accumulate,
        examples=measured,
        what=f"{count} examples, {chosen}",
        judged=judged,
    )


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    weights = weights.astype(np.float64)
    total = weights.sum()
    return float(np.sum(np.where(weights > 0, values, 0.0) * weights) / total) if total > 0 else math.nan
