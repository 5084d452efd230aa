import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from unclip_jax.training.config import RunConfig
from unclip_jax.training.metrics import FILE, DeferredMetrics, MetricLogger


def make_logger(tmp_path, *, start_step=0, window=None, quiet=False, **run):
    run = RunConfig(**{"workdir": str(tmp_path), "steps": 10, "log_every": 3, "tensorboard": False, **run})
    return MetricLogger(run, start_step=start_step, batch_size=4, window=window or {}, quiet=quiet)


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]


def feed(logger, first, last):
    for step in range(first, last + 1):
        logger.add(step, {"accuracy": float("nan"), "loss": float(step)})
    logger.close()


def test_a_line_averages_its_steps(tmp_path, capsys):
    feed(make_logger(tmp_path), 1, 10)
    got = lines(tmp_path)
    # The first step has a line of its own, and counts in the one after all the same.
    assert [(line["step"], line["loss"]) for line in got] == [(1, 1.0), (3, 2.0), (6, 5.0), (9, 8.0), (10, 10.0)]
    assert all(line["accuracy"] is None for line in got)
    assert got[0]["images_per_second"] is None and all(line["images_per_second"] > 0 for line in got[1:])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5 and printed[0] == "step 1/10 (10%)  loss 1"
    # Less than a second is left of such steps.
    assert printed[2].startswith("step 6/10 (60%)  loss 5  ") and printed[2].endswith(" images/s")


def test_values_that_are_not_finite_are_left_out(tmp_path):
    logger = make_logger(tmp_path)
    for step, value in enumerate([1.0, math.nan, 3.0], 1):
        logger.add(step, {"loss": value})
    logger.close()
    assert lines(tmp_path)[1]["loss"] == 2.0


def test_resumed_file_equals_the_unbroken_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    feed(make_logger(whole), 1, 10)

    # Saved at step 4, went on to step 7, was killed while writing.
    logger = make_logger(broken)
    feed(logger, 1, 4)
    window = json.loads(json.dumps(logger.window))
    feed(make_logger(broken, start_step=4, window=window), 5, 7)
    with open(broken / FILE, "a") as file:
        file.write('{"step": 9, "lo')
    feed(make_logger(broken, start_step=4, window=window), 5, 10)

    def without_rate(path):
        return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines(path)]

    assert without_rate(broken) == without_rate(whole)


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00",
        b'{"step": 2, "lo\xe9ss": 1}',
        b"[[" * 100_000,
        b'{"step": "2"}',
        b"null",
        b'{"step": ' + b"9" * 5000,
    ],
    ids=["bytes", "Latin-1", "deep", "text", "null", "digits"],
)
def test_a_damaged_file_loses_its_damaged_lines(tmp_path, damage):
    feed(make_logger(tmp_path), 1, 6)
    whole = (tmp_path / FILE).read_bytes()
    first, *rest = whole.splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(b"".join([first, damage, b"\n", *rest]))
    feed(make_logger(tmp_path, start_step=6), 7, 8)
    assert (tmp_path / FILE).read_bytes() == whole


def test_a_file_that_cannot_be_read_begins_anew(tmp_path, capsys):
    (tmp_path / FILE).mkdir()
    feed(make_logger(tmp_path), 1, 3)
    assert lines(tmp_path)[-1]["step"] == 3
    assert "metrics.jsonl cannot be read (Is a directory); it begins anew" in capsys.readouterr().out
    assert (tmp_path / f"{FILE}.unreadable").is_dir()


def test_one_line_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    logger = make_logger(tmp_path)
    for step in range(1, 11):
        logger.add(step, {"loss": 1.0})
    logger.close()
    out = capsys.readouterr().out
    assert out.count("\r") == 5 and out.count("\n") == 1 and out.endswith("\n")


def test_what_compiles_is_said(tmp_path, capsys, monkeypatch):
    clock = iter([10.0, 52.4])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    logger = make_logger(tmp_path)
    for _ in range(2):
        with logger.compiling("the training step"):
            print("called")
    logger.close()
    said = ["compiling the training step", "called", "the training step is ready after 42 s", "called"]
    assert capsys.readouterr().out.splitlines() == said


def test_quiet_processes_write_nothing(tmp_path, capsys):
    logger = make_logger(tmp_path, quiet=True)
    logger.say("hello")
    feed(logger, 1, 4)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""
    assert logger.window["loss"] == [4.0, 1]


def test_tensorboard(tmp_path):
    logger = make_logger(tmp_path, tensorboard=True)
    logger.image(1, np.zeros((4, 4, 3), np.uint8))
    feed(logger, 1, 3)
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"loss" in content and b"samples" in content and b"accuracy" not in content


class FullDisk:
    """A file that takes so many bytes."""

    def __init__(self, path, room):
        self.path, self.room = path, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device", self.path)

    def flush(self):
        if self.room < 0:
            raise OSError(28, "No space left on device", self.path)

    def close(self):
        self.flush()


@pytest.mark.parametrize("room", [10, 100, 200])
def test_tensorboard_on_a_full_disk_is_given_up_in_one_line(tmp_path, capsys, monkeypatch, room):
    """And keeps nobody waiting: there are more events than tensorboardX's own queue holds."""
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: FullDisk(path, room))
    feed(make_logger(tmp_path, tensorboard=True, log_every=1, steps=40), 1, 40)
    assert len(lines(tmp_path)) == 40
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("tensorboard cannot be written (No space left on device); TensorBoard gets no more of it") == 1


def test_tensorboard_without_a_folder(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("")
    feed(make_logger(tmp_path, tensorboard=True), 1, 3)
    assert "tensorboard cannot be written (" in capsys.readouterr().out


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs:// paths that are files under tmp_path / "gs:", and (name, text) of everything that is written to them."""
    written = []

    def place(path):
        return tmp_path / str(path).replace("gs://", "gs:/")

    def write_text(path, text):
        written.append((str(path), text))
        place(path).parent.mkdir(parents=True, exist_ok=True)
        place(path).write_text(text)

    kind = type(epath.Path("gs://b"))
    monkeypatch.setattr(kind, "exists", lambda path: place(path).exists())
    monkeypatch.setattr(kind, "read_bytes", lambda path: place(path).read_bytes())
    monkeypatch.setattr(kind, "write_text", write_text)
    return written


def test_in_a_bucket_the_file_is_written_whole(bucket, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def feed_slowly(logger, first, last):
        for step in range(first, last + 1):
            now[0] += 6.0
            logger.add(step, {"loss": float(step)})
        logger.close()

    feed_slowly(make_logger("gs://b/run", log_every=1), 1, 7)
    # After 30 seconds and at the end.
    assert [(path, text.count("\n")) for path, text in bucket] == [(f"gs://b/run/{FILE}", 5), (f"gs://b/run/{FILE}", 7)]
    feed_slowly(make_logger("gs://b/run", log_every=1, start_step=6), 7, 8)
    assert [json.loads(line)["step"] for line in bucket[-1][1].splitlines()] == list(range(1, 9))


def test_tensorboard_in_a_bucket_needs_its_client(bucket, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    feed(make_logger("gs://b/run", tensorboard=True), 1, 3)
    assert "google-cloud-storage is not installed: metrics go to metrics.jsonl" in capsys.readouterr().out
    assert len(bucket[-1][1].splitlines()) == 2


def test_without_tensorboard(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    feed(make_logger(tmp_path, tensorboard=True), 1, 3)
    assert "tensorboardX is not installed" in capsys.readouterr().out
    assert len(lines(tmp_path)) == 2


def test_delayed_by_one_step():
    delayed = DeferredMetrics()
    assert delayed.take() is None
    assert delayed.swap(1, {"loss": jnp.float32(0.5)}) is None
    assert delayed.swap(2, {"loss": jnp.float32(0.25)}) == (1, {"loss": 0.5})
    assert delayed.take() == (2, {"loss": 0.25})
    assert delayed.take() is None


@pytest.mark.parametrize(("rate", "left"), [(2.0, "0m02s"), (0.01, "6m40s"), (0.0005, "2h13m")])
def test_time_left(tmp_path, capsys, monkeypatch, rate, left):
    # The clock is read after the first step, then twice for a line: 4 / rate seconds for 4 steps.
    clock = iter([0.0, 4 / rate, 4 / rate])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    logger = make_logger(tmp_path)
    logger.add(2, {"loss": 1.0})
    logger.add(6, {"loss": 1.0})
    logger.close()
    assert capsys.readouterr().out.endswith(f"{4 * rate:.1f} images/s  {left} left\n")
