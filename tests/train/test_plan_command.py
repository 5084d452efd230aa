"""`python -m train.plan`."""

import json
import os
import subprocess
import sys

import pytest

from tests.planning.libtpu import FOLDER, needs_libtpu

pytestmark = needs_libtpu


def plan(*arguments):
    command = [sys.executable, "-m", "train.plan", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(FOLDER)}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)


@pytest.mark.slow
def test_a_recipe_on_two_slices(tmp_path):
    out = tmp_path / "plan.json"
    done = plan(
        *("prior/tiny", "--clip", "tiny", "--topology", "v5e:2x2", "v5p:2x2x1", "--mesh", "fsdp=2"),
        *("--batch", 16, "--price", 2, "--json", out),
    )
    assert done.returncode == 0, done.stderr
    assert "prior/tiny on v5e:2x2 (4 chips)" in done.stdout and "mesh data 2, fsdp 2; batch 16" in done.stdout
    assert "| prior/tiny | v5p:2x2x1 (4 chips) | 2 data x 2 fsdp | 16 |" in done.stdout
    small, large = json.loads(out.read_text())
    assert (small["topology"], small["batch_size"], small["fits"]) == ("v5e:2x2", 16, True)
    assert large["memory"]["limit"] > 6 * small["memory"]["limit"]
    assert small["model_flops"] == large["model_flops"] > 0
    # libtpu's own messages are not for the reader.
    assert "WARNING" not in done.stderr


@pytest.mark.slow
def test_drawing(tmp_path):
    out = tmp_path / "plan.json"
    where = "--topology", "v5e:2x2", "--mesh", "data=2,fsdp=2"
    done = plan("upsampler/tiny", "--clip", "tiny", "--sampling", 8, *where, "--json", out)
    assert done.returncode == 0, done.stderr
    assert "mesh data 2, fsdp 2; 8 images" in done.stdout and "s a batch" in done.stdout
    (drawn,) = json.loads(out.read_text())
    # Three steps on eight images, of which each replica has half.
    assert drawn["cost"] is None and drawn["traffic"]["all-gather"]["count"] % 3 == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no recipe given; name one first, such as decoder/paper"),
        (("prior/papr", "--topology", "v5e:2x2"), "no recipe 'prior/papr'; did you mean 'prior/paper'?"),
        (("prior/tiny", "--topology", "h100:8"), "no chip 'h100' in topology 'h100:8'"),
        (("prior/tiny", "--topology", "v5e:2x2", "--mesh", "fsdp:2"), "write it as data=4,fsdp=64"),
        (("prior/tiny", "--topology", "v5e:2x2", "--mesh", "model=2"), "the mesh has no axis 'model'"),
        (("clip/tiny", "--topology", "v5e:2x2", "--sampling", "4"), "only a prior, a decoder or an upsampler draws"),
        (("prior/tiny", "--topology", "v5e:2x2", "--mfu", "2"), "mfu is 2.0; give a share"),
        (("prior/tiny", "--topology", "v5e:2x2", "--clip", "tiny", "--mesh", "fsdp=3"), "does not fit 4 devices"),
        (("prior/tiny", "--topology", "v5e:2x2", "--clip", "tiny", "--batch", "6"), "a batch of 6 does not divide"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message):
    done = plan(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
