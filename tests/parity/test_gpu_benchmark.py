"""`python -m benchmarks.gpu` with both sides, on a CPU."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_ours
from tests.parity import gpu_peer
from unclip_jax.models.parameters import parameter_count

ROOT = Path(__file__).parent.parent.parent
# Quick to compile; times are not what is looked at.
ENV = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
TRIAL = ("--device", "cpu", "--threads", "1", "--size", "small", "--batch", "2", "--images", "1")
NETWORKS = {"prior": ("prior",), "decoder": ("decoder",), "sampling": ("clip", "prior", "decoder", "upsampler_0")}


@pytest.mark.parametrize("name", gpu_ours.SIZES)
def test_sizes_are_the_peers(name):
    assert dataclasses.asdict(gpu_ours.SIZES[name]) == dataclasses.asdict(gpu_peer.SIZES[name])


@pytest.mark.parametrize("name", gpu_ours.SIZES)
@pytest.mark.parametrize("what", NETWORKS)
def test_parameters_are_as_many(what, name):
    clip, stages = gpu_ours.karlo(gpu_ours.SIZES[name])
    specs = {"clip": clip} | {stage: each.network for stage, each in stages.items()}
    ours = sum(parameter_count(specs[each].abstract_params()) for each in NETWORKS[what])
    networks = gpu_peer.build(what, gpu_peer.SIZES[name], "meta")
    assert ours == sum(value.numel() for value in gpu_peer.trained(networks))


def benchmark(tmp_path, *words):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", *TRIAL, "--rounds", "2", "--steps", "2", *words]
    command += ["--torch-python", sys.executable, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=ENV, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def check(row):
    ours, theirs = row["sides"]["ours"], row["sides"]["torch"]
    assert ours["parameters"] == theirs["parameters"]
    for side in (ours, theirs):
        assert len(side["seconds"]) == 2 and min(side["seconds"]) > 0
        assert all(map(math.isfinite, side["values"]))
    assert 0 < row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]


@pytest.mark.slow
def test_both_sides(tmp_path):
    written, printed = benchmark(tmp_path, "--no-compile")
    assert written["cpu_trial"] and written["notes"] == [] and printed.startswith("CPU trial")
    assert [row["what"] for row in written["rows"]] == ["prior", "decoder", "sampling"]
    for row in written["rows"]:
        check(row)
        assert row["sides"]["torch"]["mfu"] is None
        if row["what"] != "sampling":
            # It goes on training between rounds.
            assert row["flops"] > 0 and all(len(set(side["values"])) == 2 for side in row["sides"].values())


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="torch.compile needs a C++ compiler")
def test_a_compiled_peer(tmp_path):
    written, _ = benchmark(tmp_path, "--what", "prior", "--peak", "1")
    (row,) = written["rows"]
    check(row)
    assert 0 < row["sides"]["torch"]["mfu"] < 1 and "without compile" not in written["software"]["torch"]
