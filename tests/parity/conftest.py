"""Both sides of the same small Karlo. Nothing here is collected where torch and diffusers are not installed."""

import importlib.util
import warnings

import pytest

collect_ignore_glob = []
if not all(importlib.util.find_spec(name) for name in ("torch", "diffusers")):
    collect_ignore_glob.append("test_*.py")


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/parity/" in item.nodeid:
            item.add_marker(pytest.mark.parity)
            # What other packages have to say about their own future is not ours to fix.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def threads():
    """As many as pytest's workers leave."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """diffusers' pipeline."""
    from tests.parity import peers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peers.karlo(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def hub_folder(pipeline, tmp_path_factory):
    """The pipeline as diffusers saves it, which is the hub's layout."""
    folder = tmp_path_factory.mktemp("hub") / "karlo"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def system(hub_folder, tmp_path_factory):
    """The same pipeline, imported."""
    from unclip_jax.bundle import store
    from unclip_jax.convert.karlo import import_karlo

    imported, _ = import_karlo(hub_folder, "karlo")
    folder = tmp_path_factory.mktemp("bundle") / "karlo"
    store.save(imported, folder)
    return store.load(folder)
