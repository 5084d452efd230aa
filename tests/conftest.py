"""Eight virtual CPU devices for every test, so that shardings are real; set before JAX starts.

And a bound on what a process of tests holds in memory.
"""

import contextlib
import ctypes
import gc
import os
import sys
from collections import Counter
from pathlib import Path

import jax
import pytest

# XLA's older generator of CPU code compiles in half the time. Processes that tests start take it over.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
# A command that a test calls would turn it on for all tests after it, and programs for TPUs cannot be read from there.
os.environ["UNCLIP_JAX_NO_CACHE"] = "1"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# JAX keeps every program that it compiled, and glibc what XLA's compiler gave back: the suite in one process had grown
# to 5.0 GB after two thirds of its files. Dropping both wherever a process passes a threshold keeps its peak at 1.25 GB
# and costs a hundredth of the time. After tests/convert/test_goldens.py, clear_caches and malloc_trim together left
# 0.47 of 1.46 GB, and either alone gave next to nothing back.
MUCH, TOO_MUCH = 800, 1500
"""Megabytes. Above the first a process gives memory back; a test in which its peak passes the second one fails."""


def megabytes(field: str) -> float:
    """VmRSS, what this process holds; VmHWM, the most that it ever held. 0 where there is no /proc."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next((int(line.split()[1]) / 1024 for line in status if line.startswith(field)), 0.0)
    except FileNotFoundError:
        return 0.0


def give_back() -> None:
    """Forgets what was compiled, and returns freed memory to the system."""
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # where the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)


class Memory:
    """Looks after each test, when its fixtures are gone."""

    left, peak = 0.0, 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item, nextitem):
        result = yield
        # What was left the last time is in use; to look for more after every test would only cost time. Between files
        # it is worth a little more, since the next one may be large.
        within = nextitem is not None and nextitem.path == item.path
        if megabytes("VmRSS") > max(MUCH, self.left + MUCH / 4) - (0 if within else MUCH / 5):
            give_back()
            self.left = megabytes("VmRSS")
        before, self.peak = self.peak, megabytes("VmHWM")
        # Not ours to bound: torch, which the tests of parity import, and the compiler for TPUs (1.8 GB, which
        # it gives back).
        if before < TOO_MUCH <= self.peak and not {"torch", "libtpu"} & sys.modules.keys():
            message = f"this process has held {self.peak:.0f} MB; make the test smaller (tests/conftest.py says more)"
            pytest.fail(message, pytrace=False)
        return result


def pytest_configure(config):
    config.pluginmanager.register(Memory(), "memory")


def pytest_collection_modifyitems(items):
    """Puts files of many slow tests first: begun last, one of them keeps a single worker busy when all others rest."""
    long = Counter(item.path for item in items if any(map(item.get_closest_marker, ("slow", "multihost"))))
    items.sort(key=lambda item: -long[item.path])


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

    return tiny.system()


@pytest.fixture(scope="session")
def tiny_folder(tiny_bundle, tmp_path_factory) -> Path:
    """The same, in a folder."""
    from unclip_jax.bundle import save

    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    save(tiny_bundle, folder)
    return folder
