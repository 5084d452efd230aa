"""Eight virtual CPU devices for every test, so that shardings are real; set before JAX starts."""

import os
from pathlib import Path

import jax
import pytest

# XLA's older generator of CPU code compiles in half the time. Processes that tests start take it over.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


# What is ours is imported in the fixtures: the checks of shapes are put in when a module is first imported.
@pytest.fixture(scope="module")
def quick_compile():
    """Compiles in half the time, to slower programs: where networks are tiny, that is the better bargain."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def tiny_bundle():
    """A whole cascade with random weights, in memory."""
    from tests import tiny

    return tiny.bundle()


@pytest.fixture(scope="session")
def tiny_folder(tiny_bundle, tmp_path_factory) -> Path:
    """The same, in a folder."""
    from unclip_jax.bundle import save

    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    save(tiny_bundle, folder)
    return folder
