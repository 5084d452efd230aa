import os
import tempfile

import jax
import pytest

from unclip_jax.core import compilation_cache

# By this name, since types know of no such option.
FOLDER = "jax_compilation_cache_dir"


@pytest.fixture
def jax_config():
    names = (FOLDER, "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_enable(tmp_path, monkeypatch, jax_config):
    monkeypatch.delenv("UNCLIP_JAX_NO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.enable()
    assert getattr(jax.config, FOLDER) == str(tmp_path / "unclip_jax" / "xla")


def test_turned_off(tmp_path, monkeypatch, jax_config):
    monkeypatch.setenv("UNCLIP_JAX_NO_CACHE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = getattr(jax.config, FOLDER)
    compilation_cache.enable()
    assert getattr(jax.config, FOLDER) == before


def test_without_a_home_it_is_temporary(tmp_path, monkeypatch, jax_config):
    monkeypatch.delenv("UNCLIP_JAX_NO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    compilation_cache.enable()
    assert getattr(jax.config, FOLDER) == str(tmp_path / "unclip_jax" / "xla")
