"""Several processes on this machine that find each other as those of several hosts do; they run side by side."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.multihost.run import KINDS, ONE_LEVEL, evaluated, images
from tests.training.test_devices import on_one_device
from tests.training.toy import FROZEN, Toy, batches, config
from unclip_jax.training.checkpoint import FOLDER
from unclip_jax.training.loop import train
from unclip_jax.training.metrics import FILE

pytestmark = [pytest.mark.multihost, pytest.mark.usefixtures("quick_compile")]

STEPS = 14
DEVICES = 8


# Below those that systems give to outgoing connections, and each one once: a port that the kernel finds free is free
# until somebody binds it, so two jobs started together could be given the same one and find each other.
PORTS = iter(random.SystemRandom().sample(range(20_000, 32_000), 1000))


def free_port():
    for port in PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Processes:
    """The processes of one job."""

    def __init__(self, count, job, *, started=None, timeout=120, **arguments):
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(DEVICES // count), "JAX_PLATFORMS": "cpu"}
        environment["START_TIMEOUT"] = str(timeout)
        command = [sys.executable, "-m", "tests.multihost.run", f"127.0.0.1:{free_port()}", str(count)]
        self._processes = [
            subprocess.Popen(
                [*command, str(process), job, json.dumps(arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for process in range(count if started is None else started)
        ]

    def end(self, timeout=240):
        """[(exit status, stdout, stderr)] once all have ended."""
        ends = time.monotonic() + timeout
        try:
            outputs = [process.communicate(timeout=ends - time.monotonic()) for process in self._processes]
        finally:
            for process in self._processes:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(self._processes, outputs, strict=True)]


def logged(workdir):
    lines = [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def one_process(workdir):
    train(Toy(), FROZEN, batches, **config(workdir, STEPS, save_every=5))
    return logged(workdir)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """{name: (folder, processes)}, all under way."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("killed", "lost", "told", "alone")}
    toy = {name: {"workdir": str(folder), "steps": STEPS} for name, folder in folders.items()}
    started = {
        "killed": Processes(2, "toy", **toy["killed"], fate="SIGKILL", who=[0, 1], at=7),
        "lost": Processes(2, "toy", **toy["lost"], fate="SIGKILL", who=[1], at=7),
        "told": Processes(2, "toy", **toy["told"] | {"steps": 2000}, fate="SIGTERM", who=[1], at=7, pause=0.05),
        "alone": Processes(2, "toy", **toy["alone"], started=1, timeout=3),
    }
    yield {name: (folders[name], processes) for name, processes in started.items()}
    for processes in started.values():
        processes.end()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Losses of the run that nothing happens to."""
    return one_process(tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module")
def killed(jobs):
    folder, processes = jobs["killed"]
    assert [status for status, _, _ in processes.end()] == [-signal.SIGKILL] * 2
    return folder


@pytest.fixture(scope="module")
def by_four(killed, tmp_path_factory):
    """The killed run, gone on with by four processes of two devices; under way."""
    folder = tmp_path_factory.mktemp("by_four") / "run"
    shutil.copytree(killed, folder)
    return folder, Processes(4, "toy", workdir=str(folder), steps=STEPS)


def test_nobody_else_there(jobs):
    ((status, _, err),) = jobs["alone"][1].end()
    assert status == 2
    line = err.splitlines()[-1]
    assert line.startswith("error: process 0 of 2 has not found all the others within 3 s; start the same command")
    assert "Traceback" not in err and "***" not in err


def test_killed_and_gone_on_with_in_one_process(straight, killed, by_four, tmp_path):
    assert {path.name for path in (killed / FOLDER).iterdir() if path.name.isdigit()} == {"5"}
    shutil.copytree(killed, tmp_path / "run")
    same_losses(one_process(tmp_path / "run"), straight)


def test_killed_and_gone_on_with_in_four(straight, by_four):
    folder, processes = by_four
    ended = processes.end()
    assert [status for status, _, _ in ended] == [0] * 4, ended[0][2]
    assert f"carrying on from step 5 in {folder}" in ended[0][1]
    same_losses(logged(folder), straight)


def test_a_spoilt_checkpoint_is_set_aside_by_both(straight, by_four):
    folder, processes = by_four
    processes.end()
    for path in (folder / FOLDER / str(STEPS) / "ema").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    ended = Processes(2, "toy", workdir=str(folder), steps=STEPS).end()
    assert [status for status, _, _ in ended] == [0, 0], ended[0][2]
    for _, _, err in ended:
        assert f"checkpoint {STEPS} cannot be read" in err and "going on from step 10" in err
    assert (folder / f"{FOLDER}.unreadable" / str(STEPS)).is_dir()
    assert (folder / FOLDER / str(STEPS)).is_dir()
    same_losses(logged(folder), straight)


def same_losses(found, expected):
    assert list(found) == list(expected) == [1, 3, 6, 9, 12, 14]
    # Sums over the devices are taken in another order.
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-6)


def test_a_lost_process(jobs):
    (status, _, err), (killed, _, _) = jobs["lost"][1].end()
    assert (status, killed) == (75, -signal.SIGKILL)
    line = err.splitlines()[-1]
    assert line.startswith("process 0 of 2: ") and "another process is gone" in line
    assert line.endswith("start all processes again with the same command to carry on from the newest checkpoint")


def test_one_process_is_told_to_end(jobs):
    folder, processes = jobs["told"]
    ended = processes.end()
    assert [status for status, _, _ in ended] == [0, 0], ended[0][2]
    steps = sorted(int(path.name) for path in (folder / FOLDER).iterdir())
    assert f"stopped and saved at step {steps[-1]}; run the same command again" in ended[0][1]
    assert 7 < steps[-1] < 2000


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Images drawn by this process alone, and what each of the two saw."""
    folder = tmp_path_factory.mktemp("stages")
    processes = Processes(2, "stages", folder=str(folder))
    for kind in KINDS:  # meanwhile
        on_one_device(kind, **ONE_LEVEL)
    drawn = images()
    ended = processes.end(timeout=480)
    assert [status for status, _, _ in ended] == [0, 0], ended[0][2]
    return drawn, [json.loads((folder / str(process)).read_text()) for process in range(2)]


@pytest.mark.slow
def test_every_process_sees_the_same(seen):
    drawn, processes = seen
    for process in processes:
        assert process["gathered"] == list(range(16))
        assert process["first"] == [list(range(4)), list(range(10))]
        assert process["fetched"] == [2.0 * i for i in range(8)]
        assert process["numbers"] == [0, 1]
        assert process["losses"] == processes[0]["losses"]
        assert process["evaluated"] == processes[0]["evaluated"]
        assert process["evaluated"] == pytest.approx(evaluated(), rel=1e-6)
        assert process["images"] == processes[0]["images"]
    # One device is another program, and may round to the level beside it; see tests/sampling/test_session.py.
    assert np.abs(np.subtract(processes[0]["images"], drawn)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_same_losses_as_on_one_device(seen, kind):
    """And so as on eight devices of one process, see tests/training/test_devices.py."""
    # Sums over the batch are taken in another order.
    _, (first, _) = seen
    np.testing.assert_allclose(first["losses"][kind], on_one_device(kind, **ONE_LEVEL)[:, 0], rtol=1e-6)
