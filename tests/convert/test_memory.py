"""Importing holds one tensor at a time: what a model needs in memory does not grow with the model."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from unclip_jax.convert.export import export_karlo
from unclip_jax.convert.mapping import LazyArray, wanted
from unclip_jax.models.parameters import unflatten

IMPORT = """
import resource, sys
from unclip_jax.convert import __main__ as convert
if len(sys.argv) > 1:
    convert.main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kilobytes(*words) -> int:
    run = subprocess.run([sys.executable, "-c", IMPORT, *map(str, words)], capture_output=True, text=True, check=True)
    return int(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux, bytes elsewhere")
def test_peak_memory_of_an_import(karlo_system, tmp_path):
    prior = karlo_system.stage("prior")
    network = dataclasses.replace(prior.network, width=512, num_layers=16)
    params = {
        name: LazyArray(shape, lambda shape=shape: np.full(shape, 0.5, np.float32))
        for name, shape in wanted(network).items()
    }
    large = dataclasses.replace(
        karlo_system,
        stages=karlo_system.stages | {"prior": dataclasses.replace(prior, network=network)},
        params=karlo_system.params | {"prior": unflatten(params)},
    )
    export_karlo(large, tmp_path / "hub")
    largest = max(path.stat().st_size for path in (tmp_path / "hub").rglob("*.safetensors"))
    assert largest > 200e6
    peak = peak_kilobytes("karlo", tmp_path / "hub", tmp_path / "out") - peak_kilobytes()
    # Far below the file: nothing but the program's own working set.
    assert 1024 * peak < 0.8 * largest
