"""The launchers: short, valid, and each runs the one command."""

import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "train" / "launch"
LAUNCHERS = ["tpu_vm.sh", "slurm.sbatch", "xpk.sh"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher(name):
    path = FOLDER / name
    text = path.read_text()
    assert len(text.splitlines()) < 40
    assert "set -euo pipefail" in text and 'python -m $PACKAGE.$STAGE $RECIPE "$@"' in text
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    done = subprocess.run(["bash", path], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["train", "unclip_jax.train"])
@pytest.mark.parametrize("name", ["tpu_vm.sh", "xpk.sh"])
def test_options_arrive_as_they_were(name, package, tmp_path):
    """The cluster's tool runs the command that it is given here, with a python that prints its arguments."""
    for tool, body in {
        "gcloud": 'for word in "$@"; do case $word in --command=*) bash -c "${word#--command=}";; esac; done',
        "xpk": 'bash -c "${@: -1}"',
        "python": 'printf "[%s]" "$@"',
    }.items():
        (tmp_path / tool).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / tool).chmod(0o755)
    before = {"tpu_vm.sh": ["pod", "zone"], "xpk.sh": ["cluster", "v5litepod-256", "image"]}[name]
    words = ["prior", "tiny", "--run.workdir", "gs://a b", "--clip", "it's"]
    done = subprocess.run(
        ["bash", FOLDER / name, *before, *words],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "REPOSITORY": str(tmp_path)}
        | ({} if package == "train" else {"PACKAGE": package}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"[-m][{package}.prior][tiny][--run.workdir][gs://a b][--clip][it's]", done.stderr
