import subprocess
import sys

import numpy as np
import pytest

from tests.bundle.helpers import edit_tensors
from unclip_jax import bundle as bundles
from unclip_jax.bundle import __main__
from unclip_jax.core.errors import UserError


def test_info_prints_what_it_is(saved, capsys):
    __main__.info(str(saved))
    out = capsys.readouterr().out
    assert "tiny: a test" in out and "Apache-2.0" in out and bundles.load(saved).hash in out
    assert "6 wide, unit length, CLIP cccccccccccc" in out
    assert "32 px; 1000 cosine steps, predicts eps" in out and "sampled with sampler ddpm, steps 4" in out
    assert out.splitlines()[-1].startswith("checks")


def test_info_finds_altered_files(copy):
    edit_tensors(copy, "clip", lambda tensors: tensors.update(logit_scale=np.zeros((), np.float32)))
    bundles.load(copy, weights=False)
    with pytest.raises(UserError, match=r"clip\.safetensors is not as it was written"):
        __main__.info(str(copy))


@pytest.mark.slow
def test_the_command_ends_in_one_line_when_there_is_no_bundle():
    command = [sys.executable, "-m", "unclip_jax.bundle", "info", "absent"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no bundle absent;") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_pack_says_where_it_went():
    done = subprocess.run(
        [sys.executable, "-m", "unclip_jax.bundle", "pack"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "run python -m train.pack" in done.stderr
