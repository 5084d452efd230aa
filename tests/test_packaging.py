"""What is installed: the wheel's content, its commands, and the ranges of versions that are written down twice."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def without_ours(requirements):
    return {line for line in requirements if not line.startswith("unclip_jax")}


def test_requirements_are_the_dependencies_and_three_extras():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    written = [line for line in lines if line and not line.startswith("#")]
    parts = [PROJECT["dependencies"], *(without_ours(EXTRAS[name]) for name in ("data", "train", "convert"))]
    assert len(written) == len(set(written)) and set(written) == set().union(*parts)
    assert sum(map(len, parts)) == len(written), "something stands in two of them"


def test_every_extra_that_is_named_exists():
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    sources = [path for folder in ("unclip_jax", "train", "sample") for path in (ROOT / folder).rglob("*.*")]
    text = "\n".join(path.read_text() for path in [*documents, *sources] if path.suffix not in (".safetensors", ".pyc"))
    named = re.findall(r"(?:unclip_jax|'\.|`\.)\[([a-z0-9,]+)\]", text) + re.findall(r'needs\("(\w+)"\)', text)
    assert {"train", "dev", "data"} <= {name for names in named for name in names.split(",")} <= EXTRAS.keys()


def test_console_scripts_are_functions():
    for target in PROJECT["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("folder", ["train", "sample"])
def test_commands_import_each_other_by_relative_names(folder):
    """In a wheel they are `unclip_jax.train` and `unclip_jax.sample`."""
    absolute = re.compile(rf"^\s*(?:from|import) {folder}\b.*", re.MULTILINE)
    found = {path.name: absolute.findall(path.read_text()) for path in (ROOT / folder).rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_one_package_and_all_of_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"unclip_jax"}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "unclip_jax").rglob("*") if path.is_file()}
    for folder in ("train", "sample"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        expected |= {f"unclip_jax/{path.relative_to(ROOT).as_posix()}" for path in files}
    expected = {name for name in expected if "__pycache__" not in name}
    assert {"unclip_jax/train/launch/slurm.sbatch", "unclip_jax/assets/demo/decoder.safetensors"} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_the_commands_of_an_unpacked_wheel(wheel, tmp_path):
    """From another folder, in which there is a `train.py` and a `sample.py` of somebody else's."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(
            tmp_path / "site", [name for name in archive.namelist() if not name.endswith(".safetensors")]
        )
    work = tmp_path / "work"
    work.mkdir()
    for name in ("train", "sample"):
        (work / f"{name}.py").write_text("raise AssertionError('not this one')\n")

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            [sys.executable, *words], cwd=work, env=environment, capture_output=True, text=True, check=False
        )

    found = run("-m", "unclip_jax.train", "decoder", "tinny")
    assert (found.returncode, found.stderr) == (
        2,
        "error: no recipe 'tinny' for the decoder; did you mean 'tiny'?\n",
    )
    script = "import sys; sys.argv[0] = 'unclip-sample'; from unclip_jax.core import commands; commands.sample()"
    found = run("-c", script, "variations", "--help")
    assert found.returncode == 0 and found.stdout.startswith("usage: unclip-sample variations [-h]"), found.stderr
    assert "unclip-sample variations photo.jpg" in found.stdout and "python -m" not in found.stdout
