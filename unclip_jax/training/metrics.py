"""Metrics of a run: always `metrics.jsonl` and the console, TensorBoard where it is installed, wandb where asked for.

A line averages the steps since the line before; besides, the first step of a run has a line of its own. The values of a
step are fetched only when the next step has been dispatched, so that logging never keeps the device waiting.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from unclip_jax.core.files import atomic_write
from unclip_jax.training.board import open_board
from unclip_jax.training.config import RunConfig
from unclip_jax.training.wandb_sink import WandbSink
from unclip_jax.training.workdir import is_remote, open_folder

FILE = "metrics.jsonl"
UPLOAD_EVERY = 30
"""Seconds between writes of the file in a bucket, where nothing can be appended."""


class Sink(Protocol):
    """Where numbers and pictures of a run are shown, besides the file and the console."""

    def scalar(self, name: str, value: float, step: int) -> None: ...

    def image(self, name: str, image: UInt8[np.ndarray, "h w 3"], step: int) -> None: ...

    def close(self) -> None: ...


class MetricLogger:
    """Averages, writes and prints the metrics of one process; `quiet` processes average only.

    `window` is its whole memory: JSON, saved with each checkpoint, so that a resumed run writes the lines
    that it would have written.
    """

    def __init__(
        self, run: RunConfig, *, start_step: int, batch_size: int, window: dict[str, list[float]], quiet: bool
    ):
        self._run = run
        self._batch_size = batch_size
        self._window: dict[str, list[float]] = {name: list(pair) for name, pair in window.items()}
        self._clock: tuple[int, float] | None = None
        self._compiled: set[str] = set()
        self._tty = sys.stdout.isatty()
        self._file = None
        self._sinks: list[Sink] = []
        if not quiet:
            if run.tensorboard and (board := open_board(run, start_step)) is not None:
                self._sinks.append(board)
            if run.wandb:
                self._sinks.append(WandbSink(run))
            path = open_folder(run.workdir) / FILE
            self._file = _BucketFile(path, start_step) if is_remote(path) else _File(Path(path), start_step)

    @property
    def window(self) -> dict[str, list[float]]:
        """{metric: [sum, count]} since the last line."""
        return {name: list(pair) for name, pair in self._window.items()}

    def add(self, step: int, values: dict[str, float]) -> None:
        """Take the metrics of one finished step (steps done, this one included); write every `log_every`.

        Values that are not finite (a metric without examples, a skipped step) are left out of the average.
        """
        if self._clock is None:
            # The first step compiles: the rate starts after it.
            self._clock = (step, time.monotonic())
        for name, value in values.items():
            pair = self._window.setdefault(name, [0.0, 0.0])
            if math.isfinite(value):
                pair[0] += value
                pair[1] += 1
        if step % self._run.log_every == 0 or step == self._run.steps:
            self._write(step)
            self._window = {}
        elif step == 1:
            self._write(step)

    def evaluation(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Write what an evaluation found, {what was measured: {name: value}}, on a line of its own, side by side."""
        if self._file is None:
            return
        values = {f"{where}/{name}": value for where, own in scores.items() for name, value in own.items()}
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self._show(step, values)
        names = sorted({name for own in scores.values() for name in own}, key=lambda name: (name != "loss", name))
        shown = "  ".join(
            f"{name} {' | '.join(f'{own[name]:.4g}' if name in own else '-' for own in scores.values())}"
            for name in names
        )
        self.say(f"step {step}  {' | '.join(scores)}  {shown}")

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the time spent inside out of the rate of steps."""
        started = time.monotonic()
        yield
        if self._clock is not None:
            since, clock = self._clock
            self._clock = (since, clock + time.monotonic() - started)

    def image(self, step: int, grid: np.ndarray) -> None:
        """Show a uint8 image [h w 3] wherever the numbers are shown."""
        for sink in self._sinks:
            sink.image("samples", grid, step)

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Say, around the first call of a program, that it is compiled, and then how long that took."""
        if what in self._compiled:
            yield
            return
        self._compiled.add(what)
        self.say(f"compiling {what}")
        started = time.monotonic()
        yield
        self.say(f"{what} is ready after {time.monotonic() - started:.0f} s")

    def say(self, line: str) -> None:
        """Print a line of its own, clear of the progress line."""
        if self._file is not None:
            print(f"\n{line}" if self._tty and self._clock else line, flush=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        for sink in self._sinks:
            sink.close()

    def _show(self, step: int, values: Mapping[str, float | None]) -> None:
        for sink in self._sinks:
            for name, value in values.items():
                if value is not None:
                    sink.scalar(name, value, step)

    def _write(self, step: int) -> None:
        if self._file is None or self._clock is None:
            return
        window = sorted(self._window.items(), key=lambda item: (item[0] != "loss", item[0]))
        means = {name: total / count if count else None for name, (total, count) in window}
        since, started = self._clock
        seconds = time.monotonic() - started
        rate = (step - since) / seconds if step > since and seconds > 0 else None
        self._clock = (step, time.monotonic())
        images = rate and rate * self._batch_size
        self._file.write(json.dumps({"step": step, **means, "images_per_second": images}, allow_nan=False) + "\n")
        self._show(step, means)
        self._print(step, means, rate)

    def _print(self, step: int, means: dict[str, float | None], rate: float | None) -> None:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items() if value is not None)
        line = f"step {step}/{self._run.steps} ({step / self._run.steps:.0%})  {shown}"
        if rate:
            line += f"  {rate * self._batch_size:.1f} images/s"
            left = (self._run.steps - step) / rate
            if left >= 1:
                line += f"  {_duration(left)} left"
        if self._tty:
            print(f"\r\033[K{line}", end="\n" if step == self._run.steps else "", flush=True)
        else:
            print(line, flush=True)


class DeferredMetrics:
    """Holds one step's metrics on the device until the next step is under way."""

    def __init__(self):
        self._pending: tuple[int, dict[str, jax.Array]] | None = None

    def swap(self, step: int, metrics: dict[str, jax.Array]) -> tuple[int, dict[str, float]] | None:
        """Take the metrics of `step` and return those of the step before, fetched."""
        before, self._pending = self.take(), (step, metrics)
        return before

    def take(self) -> tuple[int, dict[str, float]] | None:
        """Return what is held, fetched; this waits for that step to end."""
        if self._pending is None:
            return None
        (step, metrics), self._pending = self._pending, None
        return step, {name: float(value) for name, value in jax.device_get(metrics).items()}


class _File:
    """Lines appended to a local file."""

    def __init__(self, path: Path, start_step: int):
        if path.exists():
            kept = _lines_up_to(start_step, _content(epath.Path(path)))
            if path.is_dir():
                path.rename(path.with_name(f"{FILE}.unreadable"))
            with atomic_write(path) as draft:
                draft.write_bytes(kept)
        self._file = open(path, "a", encoding="utf-8")

    def write(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _BucketFile:
    """Lines kept here and written to a bucket whole, now and then and at the end."""

    def __init__(self, path: epath.Path, start_step: int):
        self._path = path
        self._text = _lines_up_to(start_step, _content(path)).decode() if path.exists() else ""
        self._uploaded = time.monotonic()

    def write(self, line: str) -> None:
        self._text += line
        if time.monotonic() - self._uploaded >= UPLOAD_EVERY:
            self.close()

    def close(self) -> None:
        self._path.write_text(self._text)
        self._uploaded = time.monotonic()


def _content(path: epath.Path) -> bytes:
    """Return what a file holds, nothing where it cannot be read: it stops no run whose checkpoint is sound."""
    try:
        return path.read_bytes()
    except OSError as error:
        print(f"{path} cannot be read ({error.strerror or error}); it begins anew", flush=True)
        return b""


def _lines_up_to(step: int, content: bytes) -> bytes:
    """Return the whole lines up to `step`; a run that lost some steps writes them again."""
    kept = []
    for line in content.splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line.decode("utf-8"))["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            # A line that a killed process left half written, or that is damaged.
            continue
    return b"".join(kept)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
