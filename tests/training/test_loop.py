import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers import assert_trees_equal
from tests.training.toy import FROZEN, Toy, batches, config
from unclip_jax.core.errors import UserError
from unclip_jax.training.checkpoint import FOLDER, load_params
from unclip_jax.training.lock import FILE as LOCK
from unclip_jax.training.loop import train
from unclip_jax.training.metrics import FILE

STEPS = 14
FATES = {"die_saving": 10, "term_at": 7}


def run(workdir, steps=STEPS, *, data=batches, **options):
    settings = config(workdir, steps, options.pop("optim", None), **{"save_every": 5, **options})
    return train(Toy(), FROZEN, data, **settings)


def logged(workdir):
    lines = [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return run(workdir), logged(workdir), workdir


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """{fate: (workdir, exit status, stdout)} of runs in processes of their own, side by side."""
    processes = {}
    for fate, step in FATES.items():
        workdir = tmp_path_factory.mktemp(fate)
        command = [sys.executable, "-m", "tests.training.toy", str(workdir), str(STEPS), f"{fate}={step}"]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
        processes[fate] = (
            workdir,
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment),
        )
    results = {}
    for fate, (workdir, process) in processes.items():
        out, _ = process.communicate(timeout=120)
        results[fate] = workdir, process.returncode, out
    return results


@pytest.mark.slow
@pytest.mark.parametrize("fate", FATES)
def test_resumes_bit_for_bit(straight, ended, fate):
    workdir, status, out = ended[fate]
    assert (workdir / FOLDER / "5").exists()
    if fate == "term_at":
        assert status == 0
        assert "stopped and saved at step 8; run the same command again to carry on" in out
        assert (workdir / FOLDER / "8").exists()
    else:
        assert status == -signal.SIGKILL
    starts = []

    def data(start_step):
        starts.append(start_step)
        return batches(start_step)

    state = run(workdir, data=data)
    assert starts == [8] if fate == "term_at" else starts in ([5], [10])
    assert_trees_equal(jax.device_get(state), jax.device_get(straight[0]))
    assert logged(workdir) == straight[1]


@pytest.mark.slow
def test_it_says_what_it_does(tmp_path, capsys):
    run(tmp_path, steps=4, log_every=2)
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first == "compiling the training step" and second.startswith("the training step is ready after ")
    assert [line.split("  ")[0] for line in rest] == ["step 1/4 (25%)", "step 2/4 (50%)", "step 4/4 (100%)"]
    assert not any(line.endswith("left") for line in rest)


def test_the_lines_of_a_run(straight):
    state, lines, _ = straight
    assert [line["step"] for line in lines] == [1, 3, 6, 9, 12, 14]
    assert lines[-1]["loss"] < lines[1]["loss"] and lines[0]["never"] is None
    assert int(state.step) == STEPS


def test_finished_run_is_left_alone(straight, capsys):
    state, _, workdir = straight

    def no_data(_):
        raise AssertionError("a finished run needs no data")

    assert_trees_equal(jax.device_get(run(workdir, data=no_data)), jax.device_get(state))
    assert capsys.readouterr().out == f"the run in {workdir} has all its 14 steps; raise run.steps to train on\n"
    assert json.loads((workdir / "config.json").read_text())["run"]["steps"] == STEPS


def test_another_model_is_refused(straight):
    settings = config(straight[2], 20)
    other = dataclasses.replace(settings["meta"].config, model=Toy(hidden=99))
    settings["meta"] = dataclasses.replace(settings["meta"], config=other)
    with pytest.raises(UserError, match="^model.hidden is 99, .* was started with 16"):
        train(Toy(hidden=99), FROZEN, batches, **settings)


@pytest.mark.slow
def test_stops_at_a_loss_that_is_not_finite(tmp_path):
    def data(start_step):
        return batches(start_step, nan_at=(9,))

    with pytest.raises(UserError, match="^step 10: the loss is nan and the gradient norm nan; try") as raised:
        run(tmp_path, data=data)
    assert str(raised.value).endswith("set optim.on_nonfinite to skip; the checkpoint of step 5 is whole")
    # Step 10 was due to be saved; the run goes on from before the trouble.
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["5"]


@pytest.mark.slow
def test_skips_until_there_are_too_many(tmp_path):
    optim = dataclasses.replace(config(tmp_path, 1)["optim"], on_nonfinite="skip", max_skips=2)
    with pytest.raises(
        UserError, match="^step 7: .*, 2 steps in a row; try a lower.*bfloat16; the checkpoint of step 5"
    ):
        run(tmp_path, optim=optim, data=lambda start: batches(start, nan_at=(1, 3, 5, 6)))
    params, _ = load_params(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_data_that_ends(tmp_path):
    closed = []
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    class Short:
        def __init__(self, start_step):
            self._rest = iter([next(batches(step)) for step in range(start_step, 3)])

        def __next__(self):
            return next(self._rest)

        def __iter__(self):
            return self

        def close(self):
            closed.append(True)

    with pytest.raises(UserError, match="the data ended at step 3; repeat it, or lower run.steps to 3"):
        run(tmp_path, data=Short)
    assert closed == [True]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


@pytest.mark.slow
def test_data_that_stop_coming(tmp_path):
    """In a process of its own: the watchdog ends it."""
    command = [sys.executable, "-m", "tests.training.toy", str(tmp_path), str(STEPS), "hang=7"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("process 0 of 1: no step finished for 3 s after step 6; another")
    assert "step 6/14" in done.stdout


@pytest.mark.slow
def test_the_same_command_twice(straight, tmp_path):
    """The second is refused in one line, and the first never knows."""
    command = [sys.executable, "-m", "tests.training.toy", str(tmp_path), str(STEPS), "wait=7"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not (tmp_path / FOLDER / "5").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: {tmp_path} is being trained by process {first.pid} of ")
    assert second.stderr.endswith("or take the run over with --run.take-over\n") and second.stderr.count("\n") == 1
    (tmp_path / "go").touch()
    _, err = first.communicate(timeout=120)
    assert (first.returncode, err) == (0, "")
    assert logged(tmp_path) == straight[1]
    assert not (tmp_path / LOCK).exists()


@pytest.mark.slow
def test_a_profile(tmp_path):
    run(tmp_path, profile=2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_previews_are_drawn_from_the_average(tmp_path):
    seen = {}

    def preview(ema, frozen, step):
        assert float(frozen["scale"]) == 0.5
        seen[step] = jax.device_get(ema)
        return np.full((4, 6, 3), step, np.uint8) if step != 4 else None

    settings = config(tmp_path, 6, sample_every=2)
    state = train(Toy(), FROZEN, batches, **settings, preview=preview)
    assert sorted(seen) == [2, 4, 6]
    assert_trees_equal(seen[6], jax.device_get(state.ema))
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step_000002.png",
        "step_000006.png",
    ]
    with Image.open(tmp_path / "samples" / "step_000006.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.full((4, 6, 3), 6))
