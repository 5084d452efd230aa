"""The benchmarks that compare. `benchmarks.gpu` is without GPU and torch here; tests/parity/test_gpu_benchmark.py has
both sides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, samplers
from unclip_jax.core.errors import run_cli

ROOT = Path(__file__).parent.parent
# Quick to compile; times are not what is looked at.
ENV = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
TRIAL = ("--device", "cpu", "--threads", "1", "--size", "small", "--what", "prior", "--batch", "2")
PEER = """#!/bin/sh
echo '{"device": "cpu", "software": "torch 0"}'
read request; echo '{"parameters": 7, "compile_seconds": 1}'
while read request; do echo '{"seconds": 2.0, "value": 0.5}'; done
"""


def benchmark(*words):
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENV, cwd=ROOT)


@pytest.mark.slow
def test_without_torch_our_side_is_measured_alone(tmp_path):
    out = tmp_path / "gpu.json"
    done = benchmark(*TRIAL, "--rounds", 1, "--steps", 1, "--torch-python", tmp_path / "none", "--json", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("CPU trial") and "MFU of" not in done.stdout
    assert f"torch was not measured: there is no {tmp_path / 'none'}" in done.stdout
    (row,) = json.loads(out.read_text())["rows"]
    assert list(row["sides"]) == ["ours"] and row["ratio"] is None
    assert row["sides"]["ours"]["mfu"] is None and row["attention"] == "xla"


@pytest.mark.slow
def test_both_sides_in_turn(tmp_path):
    """With a process that answers as torch's would."""
    peer, out = tmp_path / "python", tmp_path / "gpu.json"
    peer.write_text(PEER)
    peer.chmod(0o755)
    done = benchmark(*TRIAL, "--rounds", 2, "--steps", 2, "--peak", 0.1, "--torch-python", peer, "--json", out)
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads(out.read_text())
    assert written["cpu_trial"] and written["notes"] == [] and list(written["software"]) == ["ours", "torch"]
    (row,) = written["rows"]
    ours, theirs = row["sides"]["ours"], row["sides"]["torch"]
    assert theirs["images_per_second"] == 1 and theirs["mfu"] == row["flops"] / 2 / 0.1e12
    assert len(ours["seconds"]) == 2 and row["ratio"]["high"] == 2 / min(ours["seconds"])
    assert f"({row['ratio']['low']:.2f}-{row['ratio']['high']:.2f}) |" in done.stdout


@pytest.mark.slow
def test_without_a_gpu():
    done = benchmark("--size", "small")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: JAX sees no GPU here; --device cpu tries") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rounds", "0"], "rounds is 0; it must be 1 or more"),
        (["--batch", "-1"], "batch is -1; it must be 1 or more"),
        (["--peak", "nan"], "peak is nan; it must be above 0, in TFLOP/s"),
        (["--what", "clip"], "invalid choice 'clip' for argument '--what'"),
        (["--stepz", "1"], "no option --stepz; did you mean --steps?"),
        (["--json", "/dev/null/x.json"], "/dev/null is a file, so nothing can be written into it; give another --json"),
    ],
)
def test_bad_options(monkeypatch, capsys, words, line):
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    with pytest.raises(SystemExit) as end:
        run_cli(gpu.main)
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "") and err.startswith(f"error: {line}") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("echo 'a.OutOfMemoryError: 80 GiB' >&2; echo '  bye' >&2; exit 1", "a.OutOfMemoryError: 80 GiB"),
        ("echo 'error: no such device' >&2; exit 2", "no such device"),
        ("echo first >&2; echo last >&2; exit 1", "last"),
        ("exit 3", "it ended with status 3"),
    ],
)
def test_a_side_that_ends_says_why(shell, line):
    with pytest.raises(gpu.SideError) as failed:
        gpu.Child(["sh", "-c", shell], dict(os.environ))
    assert str(failed.value) == line


def test_a_side_that_ends_between_requests_says_why():
    child = gpu.Child(["sh", "-c", "echo '{}'; echo 'MemoryError' >&2; exit 1"], dict(os.environ))
    with pytest.raises(gpu.SideError, match="^MemoryError$"):
        child.ask(do="prepare")
    child.close()


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_peaks_go_by_whole_words(device, peak):
    assert gpu.peak_of(device) == peak


@pytest.mark.slow
def test_samplers_in_turn(tiny_folder, tiny_bundle, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        samplers, "text_to_image", lambda system, captions, **options: calls.append(options["settings"])
    )
    monkeypatch.setattr(samplers, "PAPER_STEPS", {"prior": 6, "decoder": 25, "upsampler_0": 2})
    monkeypatch.setattr(sys, "argv", ["samplers", "--bundle", str(tiny_folder), "--images", "2", "--rounds", "3"])
    samplers.main()
    # Every way once to compile, and then round after round.
    assert len(calls) == 4 * 5 and calls[:5] == calls[5:10]
    assert [each.steps for each in calls[0].values()] == [6, 25, 2] and calls[1] == tiny_bundle.sampling
    assert {each["decoder"].guidance_scale for each in calls} == {tiny_bundle.sampling["decoder"].guidance_scale}
    rows = capsys.readouterr().out.splitlines()[-5:]
    assert rows[0].startswith("| DDIM, steps as in the paper | 6 + 25 + 2 |")
    assert rows[0].endswith("| 1.00 (1.00-1.00) |")
    assert rows[4].startswith("| the same, decoder dpm++ 12 | 3 + 12 + 3 |")
