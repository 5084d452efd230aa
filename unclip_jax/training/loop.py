"""The training loop of every stage: resume, compile, step, log, save.

A run is a folder (`RunConfig.workdir`): config.json, metrics.jsonl, checkpoints/, samples/, tensorboard/, profile/, and
lock.json while a process trains it. Starting it again carries on from its newest checkpoint, bit for bit as if it had
never stopped. On several hosts every process runs this loop over its rows of each batch; the first of them writes.
"""

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree, UInt8

from unclip_jax.core.config import to_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write
from unclip_jax.images.png import save_png
from unclip_jax.parallel.distributed import put_global
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.parallel.step import compile_step
from unclip_jax.stages.encoders import frozen_shardings
from unclip_jax.stages.stage import Stage
from unclip_jax.training.checkpoint import Checkpoints, Meta, newest_meta
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.lock import hold
from unclip_jax.training.metrics import DeferredMetrics, MetricLogger
from unclip_jax.training.state import State, abstract_state, init, start_from, state_shardings
from unclip_jax.training.step import make_step
from unclip_jax.training.tracker import Tracker
from unclip_jax.training.validation import Evaluator, Validation
from unclip_jax.training.watchdog import Watchdog
from unclip_jax.training.workdir import is_remote, local, open_folder

_STEPS_BEFORE_PROFILE = 10

Batches = Callable[[int], Generator[dict[str, np.ndarray], None, None]]
"""From a step to the batches of that step and on."""
Preview = Callable[[PyTree, PyTree, int], UInt8[np.ndarray, "h w 3"] | None]
"""(moving average, frozen, step) -> an image to save under samples/, or None."""


def train(
    stage: Stage,
    frozen: dict[str, PyTree],
    batches: Batches,
    *,
    optim: OptimConfig,
    run: RunConfig,
    meta: Meta,
    preview: Preview | None = None,
    validation: Validation | None = None,
    start_params: Callable[[], PyTree | None] = lambda: None,
) -> State:
    """Train `stage` to `run.steps` steps and return the final state.

    Args:
        frozen: what `stage.loss` needs and does not train; {} if nothing.
        batches: step -> iterator over this process's rows of the global batches of that step and on.
        meta: what every checkpoint says about itself; its config is compared when a run resumes.
        preview: made every `run.sample_every` steps from the moving average.
        validation: what is measured of the moving average while it trains; the best checkpoint is then kept.
        start_params: reads the parameters that a new run starts from; None for random ones.

    SIGTERM and SIGINT end the step, save and leave with SystemExit(0). Raises UserError for a loss that is
    not finite (see `OptimConfig.on_nonfinite`), a full disk, a config that differs from the run's, and data
    that ends too early. Where another process is gone, or no step ends within `run.hang_timeout`, this one leaves with
    status 75, see `Watchdog`. Another process that trains in the folder is a UserError too, see `lock`.
    """
    mesh = make_mesh(run.mesh)
    workdir = open_folder(run.workdir)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(hold(run))
        checkpoints = Checkpoints(run.workdir, meta=meta, keep=run.keep, keep_period=run.keep_period)
        stack.callback(checkpoints.close)

        abstract = abstract_state(stage, optim, mesh)
        restored = checkpoints.restore(abstract)
        if restored is not None:
            state, window = restored
        elif (params := start_params()) is not None:
            state, window = start_from(jax.device_get(params), abstract, optim), {}
        else:
            state, window = init(stage, optim, mesh, jax.random.key(run.seed)), {}
        start_step, first = int(state.step), jax.process_index() == 0
        if start_step >= run.steps:
            if first:
                print(f"the run in {workdir} has all its {start_step} steps; raise run.steps to train on", flush=True)
            return state

        if first:
            with local(workdir / "config.json") as path, atomic_write(path) as draft:
                config = {"kind": meta.kind, **to_json(meta.config)}
                draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        where = frozen_shardings(frozen, mesh)
        frozen = put_global(frozen, where)
        shardings = state_shardings(abstract)
        step_fn = make_step(stage, optim, total_steps=run.steps, seed=run.seed)
        compiled = compile_step(step_fn, mesh, shardings, where, run.backend)
        judge = None
        if validation is not None:
            evaluator = Evaluator(stage, validation, mesh, shardings.ema, where)
            judge = _Judge(stage, validation, evaluator, checkpoints, None if restored is None else run.workdir)

        iterator = batches(start_step)
        stack.callback(getattr(iterator, "close", lambda: None))
        batch = _next_batch(iterator, start_step)
        batch_size = len(jax.tree.leaves(batch)[0]) * jax.process_count()
        logger = MetricLogger(run, start_step=start_step, batch_size=batch_size, window=window, quiet=not first)
        stack.callback(logger.close)
        if restored is not None:
            logger.say(f"carrying on from step {start_step} in {workdir}")
        stop = stack.enter_context(_StopSignals())
        delayed = DeferredMetrics()
        profiler = stack.enter_context(_Profiler(run, workdir, start_step))
        watchdog = stack.enter_context(Watchdog(run.hang_timeout))

        def evaluate(state: State, step: int) -> bool:
            assert judge is not None
            with logger.aside(), logger.compiling("the evaluation"):
                better = judge(state.ema, frozen, step, logger)
            watchdog.alive(step - 1)
            return better

        def settle(finished: tuple[int, dict[str, float]] | None) -> None:
            if finished is not None:
                watchdog.alive(finished[0])
                _check_finite(*finished, optim, checkpoints)
                logger.add(*finished)

        # It stopped before it was evaluated, since a host that has to go does not wait.
        if judge is not None and judge.missed(start_step, run.steps):
            evaluate(state, start_step)
        for step in range(start_step + 1, run.steps + 1):
            with profiler.step(step):
                with logger.compiling("the training step"):
                    state, metrics = compiled.run(state, frozen, compiled.put(batch))
                settle(delayed.swap(step, metrics))
            if lock is not None:
                lock.check()

            stopping = stop.received or checkpoints.reached_preemption(step)
            saving = stopping or step % run.save_every == 0 or step == run.steps
            if judge is not None and not stopping and judge.due(step, run.steps):
                settle(delayed.take())
                saving |= evaluate(state, step)
            if saving:
                # Settled first: a state whose own step failed is never saved.
                settle(delayed.take())
                if lock is not None:
                    lock.check(read=True)
                checkpoints.save(step, state, logger.window, None if judge is None else judge.memory())
                watchdog.alive(step)
            if preview is not None and run.sample_every and step % run.sample_every == 0:
                with logger.compiling("the preview"):
                    grid = preview(state.ema, frozen, step)
                if grid is not None and first:
                    with local(workdir / "samples" / f"step_{step:06d}.png") as path:
                        save_png(path, grid, {"step": str(step)})
                    logger.image(step, grid)
                watchdog.alive(step - 1)
            if stopping or step == run.steps:
                # The last bytes may take as long as they like.
                watchdog.rest()
                checkpoints.wait()
            if stopping:
                logger.say(f"stopped and saved at step {step}; run the same command again to carry on")
                raise SystemExit(0)
            if step < run.steps:
                batch = _next_batch(iterator, step)
    return state


class _Judge:
    """Evaluates, writes what was found, and has the best checkpoint kept; what it remembers is saved with each."""

    def __init__(
        self, stage: Stage, validation: Validation, evaluator: Evaluator, checkpoints: Checkpoints, carried: str | None
    ):
        meta = None if carried is None else newest_meta(carried)
        saved = {} if meta is None else meta["validation"]
        self._validation, self._evaluator, self._checkpoints = validation, evaluator, checkpoints
        self._tracker = Tracker(stage, validation.what, validation.count, validation.patience, saved)
        self.due, self.memory = validation.due, self._tracker.to_json
        checkpoints.keep_best(self._tracker.best_step)

    def missed(self, step: int, last_step: int) -> bool:
        """Return whether the step that a run carries on from should have been evaluated, and was not."""
        return step > 0 and self.due(step, last_step) and self._tracker.last_step < step

    def __call__(self, params: PyTree, frozen: PyTree, step: int, logger: MetricLogger) -> bool:
        """Return whether these weights are the best so far."""
        scores = self._evaluator(params, frozen)
        lines = self._tracker.add(step, scores)
        logger.evaluation(step, scores)
        for line in lines:
            logger.say(line)
        self._checkpoints.keep_best(self._tracker.best_step)
        return self._tracker.best_step == step


class _StopSignals:
    """Notes SIGTERM and SIGINT while entered; a second SIGINT interrupts at once.

    Several processes must stop at the same step: `Checkpoints.reached_preemption` sees to that, and JAX's own
    handler takes the SIGTERM.
    """

    received = False

    def __enter__(self):
        self._previous: dict[int, Any] = {}
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


class _Profiler:
    """Traces `run.profile` steps of the first process for xprof, once the first ten have compiled and settled."""

    def __init__(self, run: RunConfig, workdir: epath.Path, start_step: int):
        first = start_step + _STEPS_BEFORE_PROFILE + 1
        self._steps = range(first, first + run.profile) if jax.process_index() == 0 else range(0)
        self._folder = workdir / "profile"
        self._tracing = False

    def __enter__(self):
        if self._steps and is_remote(self._folder):
            raise UserError(f"{self._folder} takes no profile; set run.profile to 0, or use a local workdir")
        return self

    def __exit__(self, *_):
        self._stop()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Trace one step."""
        if self._steps and step == self._steps.start:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if self._steps and step == self._steps[-1]:
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()


def _next_batch(iterator: Iterator, step: int) -> dict[str, np.ndarray]:
    try:
        return next(iterator)
    except StopIteration:
        raise UserError(f"the data ended at step {step}; repeat it, or lower run.steps to {step}") from None


def _check_finite(step: int, metrics: dict[str, float], optim: OptimConfig, checkpoints: Checkpoints) -> None:
    skipped = int(metrics["skipped"])
    if skipped == 0 or (optim.on_nonfinite == "skip" and skipped < optim.max_skips):
        return
    checkpoints.wait()
    last = checkpoints.latest_step()
    raise UserError(
        f"step {step}: the loss is {metrics['loss']:g} and the gradient norm {metrics['grad_norm']:g}"
        + (f", {skipped} steps in a row" if optim.on_nonfinite == "skip" else "")
        + "; try a lower optim.learning_rate, check the data, compute in float32 instead of bfloat16"
        + ("" if optim.on_nonfinite == "skip" else ", or set optim.on_nonfinite to skip")
        + ("" if last is None else f"; the checkpoint of step {last} is whole")
    )
