"""Our training step and our sampling beside PyTorch's with torch.compile, in turn on one device, in one run.

    python -m benchmarks.gpu [--what prior decoder sampling] [--size full] [--batch 32] [--rounds 5] [--steps 10]
        [--peak TFLOPS] [--torch-python .venv-parity/bin/python] [--device gpu] [--json FILE]

Karlo's networks at the sizes of tests/parity/peers.py, with random weights:

    prior, decoder   a training step in bfloat16 with float32 weights: forward, loss, backward, AdamW. The batch holds
                     z_i or pixels, noise, t, and captions as CLIP encodes them; no CLIP runs. Our step is the one that
                     training takes: it keeps the moving average too and checks that the gradient is finite, of which
                     torch's step has neither.
    sampling         images from captions through the whole cascade in bfloat16: 25, 25 and 7 steps, guidance 4 and 8

Each side is a process of its own, and they work in turn, so that what slows the device down slows both. A time is that
of `--steps` steps in a row (when sampling, of one request), after which the device was waited for, by their number.
The ratio is theirs over ours in each round: above 1 ours is faster. MFU = F / (seconds * peak), where F are our step's
multiplications, nothing recomputed (`unclip_jax.planning.flops`); it is the same number for both sides.

The two processes, `benchmarks.gpu_ours` and `tests.parity.gpu_peer`, read requests and write answers, a line of JSON
each, until their stdin ends:

    (started)                    {"device", "software"}
    {"do": "prepare"}            {"parameters", "compile_seconds"}; ours also {"flops", "attention"}
    {"do": "run", "steps": n}    {"seconds"} of one step, and {"value"}: the loss, or the mean of the pixels
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from unclip_jax.core import command_line
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import atomic_write, check_writable

What = Literal["prior", "decoder", "sampling"]
ROOT = Path(__file__).parent.parent
BATCH = {"prior": 64, "decoder": 16}
PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "L4": 121e12,
    "B200": 2250e12,
}
"""Dense bfloat16 FLOP/s, as NVIDIA publishes them, by words of the device's name; the first that fits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure training steps and sampling, ours and torch's in turn."""

    what: tuple[What, ...] = ("prior", "decoder", "sampling")
    """What to measure, one after another: each has the device's memory to itself."""
    size: Literal["full", "mid", "small"] = "full"
    """Karlo as published (prior 1.02 B parameters, decoder 0.885 B), a tenth of that, or next to nothing."""
    batch: int | None = None
    """Examples of a training step; 64 for the prior and 16 for the decoder where it is not given."""
    images: int = 4
    """Images of a sampling request."""
    rounds: int = 5
    """How often each side is told to work."""
    steps: int = 10
    """Training steps of a round; of sampling a round is one request."""
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    """Our attention on a GPU: auto is cudnn where it takes the networks' lengths and masks, else xla."""
    peak: float | None = None
    """The device's peak in TFLOP/s of dense bfloat16, for MFU; that of common GPUs is known."""
    torch_python: Path = Path(".venv-parity/bin/python")
    """The Python that has torch and diffusers; where it is missing, our side is measured alone."""
    compile: bool = True
    """Compile the torch side, by torch.compile in its default mode."""
    device: Literal["gpu", "cpu"] = "gpu"
    """cpu tries this script without a GPU; its times say nothing of GPUs."""
    threads: int = 2
    """Threads of either side on a CPU."""
    json: Path | None = None
    """A file for the numbers of every round."""

    def __post_init__(self) -> None:
        for name in ("batch", "images", "rounds", "steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be 1 or more")
        if self.peak is not None and not (math.isfinite(self.peak) and self.peak > 0):
            raise UserError(f"peak is {self.peak}; it must be above 0, in TFLOP/s")
        if not self.what:
            raise UserError("what is empty; name prior, decoder or sampling")
        if self.json is not None:
            check_writable([self.json], overwrite=True, option="--json")

    def rows(self, what: What) -> int:
        """Examples of a training step, or images of a request."""
        return self.images if what == "sampling" else self.batch or BATCH[what]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """What was measured of one side; `seconds` of a step or a request, one number a round."""

    parameters: int
    compile_seconds: float
    seconds: list[float]
    values: list[float]
    images_per_second: float
    mfu: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One thing measured, by the sides that could do it: "ours" and "torch"."""

    what: What
    batch: int
    flops: float | None
    attention: str | None
    sides: dict[str, Side]

    def ratios(self) -> list[float]:
        """Theirs over ours, for each round; none where a side is missing."""
        if len(self.sides) < 2:
            return []
        ours, theirs = (self.sides[name].seconds for name in ("ours", "torch"))
        return [their / our for their, our in zip(theirs, ours, strict=True)]

    def __str__(self) -> str:
        lines = []
        for name, side in self.sides.items():
            ratios = self.ratios() if name == "torch" else []
            mfu = "" if side.mfu is None else f"{side.mfu:.1%}"
            times = spread([1e3 * each for each in side.seconds], 1)
            lines.append(
                f"| {self.what} | {name} | {side.parameters / 1e6:,.1f} M | {self.batch} "
                f"| {side.compile_seconds:.0f} s | {times} | {side.images_per_second:.1f} | {mfu} "
                f"| {spread(ratios, 2) if ratios else ''} |"
            )
        return "\n".join(lines)


HEADER = (
    "| what | side | parameters | batch | compile | step or request, ms (range) | images/s | MFU | ratio (range) |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def spread(numbers: list[float], digits: int) -> str:
    """Median and range."""
    middle, low, high = (f"{of(numbers):.{digits}f}" for of in (statistics.median, min, max))
    return f"{middle} ({low}-{high})"


def peak_of(device: str) -> float | None:
    """FLOP/s of a device by its name, None for one that `PEAKS` has not."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device)), None)


class SideError(Exception):
    """A side that ended before it answered; the text is its last line."""

    def __init__(self, line: str, status: int):
        super().__init__(line)
        self.status = status


class Child:
    """One side: a process that answers a line of JSON with another. `hello` is what it says when it has started.

    Raises SideError, here and in `ask`, where the process ends instead.
    """

    def __init__(self, command: list[str], env: dict[str, str]):
        # A file, since nobody would empty a pipe while the other side works.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115, closed by close()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=env, cwd=ROOT
        )
        try:
            self.hello = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request."""
        assert self._process.stdin is not None
        # Where it ended, its stderr says why.
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        # Libraries may have more to say after the exception, or go on about it for lines.
        named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b|error: ", line)]
        raise SideError((named or lines or [f"it ended with status {status}"])[-1].removeprefix("error: "), status)

    def close(self) -> None:
        """End the process, and give its memory back."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def commands(options: Options, what: What) -> dict[str, list[str]]:
    """What starts either side; torch's is missing where its Python is."""
    shared = ["--what", what, "--size", options.size, "--batch", str(options.rows(what))]
    ours = [sys.executable, "-m", "benchmarks.gpu_ours", *shared, "--device", options.device]
    found = {"ours": [*ours, "--attention", options.attention]}
    # Not resolved: a virtual environment's Python is a link.
    if python := shutil.which(options.torch_python.absolute()):
        device = ["--device", "cuda" if options.device == "gpu" else "cpu", "--threads", str(options.threads)]
        found["torch"] = [python, "-m", "tests.parity.gpu_peer", *shared, *device]
        found["torch"] += [] if options.compile else ["--no-compile"]
    return found


def environment(options: Options) -> dict[str, str]:
    """The environment of either side."""
    if options.device == "gpu":
        return os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen={options.threads > 1}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}


class Report:
    """What is printed and what goes to the file."""

    def __init__(self, options: Options):
        self.options = options
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.software: dict[str, str] = {}
        self.device = ""
        self.peak = None if options.peak is None else 1e12 * options.peak

    def begin(self, hello: dict[str, dict[str, str]]) -> None:
        """Print what runs where, once it is known, from what the sides said when they had started."""
        self.software |= {name: each["software"] for name, each in hello.items()}
        if self.device or not hello:
            return
        options, self.device = self.options, next(iter(hello.values()))["device"]
        if options.device == "cpu":
            print(f"CPU trial, {options.threads} threads: these times say nothing of GPUs\n")
        elif self.peak is None:
            self.peak = peak_of(self.device)
        print(f"{self.device}; {', '.join(self.software.values())}; Karlo's networks, {options.size}, bfloat16")
        print(f"{options.rounds} rounds of {options.steps} steps, or of one request of {options.images} images")
        if self.peak is not None:
            print(f"MFU of {self.peak / 1e12:.0f} TFLOP/s")
        elif options.device == "gpu":
            print("no MFU: the peak of this device is not known; give --peak")
        print(f"\n{HEADER}", flush=True)

    def note(self, line: str) -> None:
        """What to know beside the numbers, once."""
        if line not in self.notes:
            self.notes.append(line)

    def end(self) -> None:
        """Print the notes and write the file.

        Raises:
            UserError: nothing could be measured.
        """
        if not self.rows:
            raise UserError(self.notes[-1])
        print("".join(f"\n{line}" for line in self.notes))
        if self.options.json is not None:
            with atomic_write(self.options.json) as draft:
                draft.write_text(json.dumps(self.as_json(), indent=1) + "\n")

    def as_json(self) -> dict[str, Any]:
        """Everything, with the medians and ranges of the ratios."""
        rows = []
        for row in self.rows:
            ratios = row.ratios()
            ratio = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)} if ratios else None
            rows.append(dataclasses.asdict(row) | {"ratio": ratio})
        asked = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self.options).items()}
        known = {name: getattr(self, name) for name in ("device", "software", "peak", "notes")}
        return {"cpu_trial": self.options.device == "cpu", "options": asked, **known, "rows": rows}


def measure(what: What, report: Report) -> None:
    """One row of the table, of the sides that can do it; the others end as notes.

    Raises:
        UserError: our side says what a person can mend, such as that there is no GPU.
    """
    options, env = report.options, environment(report.options)
    sides: dict[str, Child] = {}
    prepared: dict[str, dict[str, Any]] = {"ours": {}}
    answers: dict[str, list[dict[str, Any]]] = {"ours": [], "torch": []}

    def drop(name: str, error: SideError) -> None:
        if name == "ours" and error.status == 2:
            raise UserError(str(error)) from None
        report.note(f"{what}: {name} was not measured: {error}")
        if name in sides:
            sides.pop(name).close()

    with ExitStack() as stack:
        for name, command in commands(options, what).items():
            try:
                sides[name] = Child(command, env)
                stack.callback(sides[name].close)
            except SideError as error:
                drop(name, error)
        report.begin({name: child.hello for name, child in sides.items()})
        requests = [{"do": "prepare"}]
        requests += [{"do": "run", "steps": 1 if what == "sampling" else options.steps}] * options.rounds
        for request in requests:
            for name, child in list(sides.items()):
                try:
                    answer = child.ask(**request)
                except SideError as error:
                    drop(name, error)
                    continue
                if request["do"] == "prepare":
                    prepared[name] = answer
                else:
                    answers[name].append(answer)
    if not sides:
        return
    batch = options.rows(what)
    flops, attention, refused = (prepared["ours"].get(name) for name in ("flops", "attention", "refused"))

    def side(name: str) -> Side:
        seconds = [answer["seconds"] for answer in answers[name]]
        middle = statistics.median(seconds)
        return Side(
            parameters=prepared[name]["parameters"],
            compile_seconds=prepared[name]["compile_seconds"],
            seconds=seconds,
            values=[answer["value"] for answer in answers[name]],
            images_per_second=batch / middle,
            mfu=None if flops is None or report.peak is None else flops / (middle * report.peak),
        )

    if refused is not None:
        report.note(f"{what}: our attention is {attention}, for want of {refused}")
    row = Row(what=what, batch=batch, flops=flops, attention=attention, sides={name: side(name) for name in sides})
    report.rows.append(row)
    print(row, flush=True)


def main() -> None:
    """Print a table, two rows for each thing that is measured."""
    options: Options = command_line.parse(Options, prog="python -m benchmarks.gpu", description=__doc__)
    report = Report(options)
    if "torch" not in commands(options, options.what[0]):
        how = "`make parity` makes .venv-parity, --torch-python names another"
        report.note(f"torch was not measured: there is no {options.torch_python}; {how}")
    if options.device == "cpu" and hasattr(os, "sched_setaffinity"):
        # Both sides inherit it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    for what in options.what:
        measure(what, report)
    report.end()


if __name__ == "__main__":
    run_cli(main)
