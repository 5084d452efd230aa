"""Files of version 0.1, the last whose bundles had format 1: they load, resume and are drawn again.

Made by that version with recipe tiny on an x86-64 CPU: all stages, trained for two steps and packed; one picture; the
run of the prior, and its metrics when it went on to four steps without a stop.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample import again
from tests import tiny
from train.recipes import tiny as recipes
from unclip_jax.bundle.store import load, save
from unclip_jax.core.config import from_json
from unclip_jax.sampling.text_to_image import text_to_image
from unclip_jax.systems.system import System
from unclip_jax.training.run import train
from unclip_jax.training.stage_configs import PriorConfig

OLD = Path(__file__).parent / "golden" / "version_0_1"
pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def system() -> System:
    return load(OLD / "bundle")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_bundle_of_format_1_is_the_same_system(system, tmp_path):
    assert json.loads((OLD / "bundle" / "config.json").read_text())["format"] == 1
    configs = {"prior": recipes.prior(), "decoder": recipes.decoder(), "upsampler_0": recipes.upsampler()}
    assert list(system.stages) == list(configs)
    for name, config in configs.items():
        stage, fitted = system.stage(name), config.fitted({"clip": system.encoder("clip").network}).stage()
        assert (stage.network, stage.process, stage.reads, stage.writes) == (
            fitted.network, fitted.process, fitted.reads, fitted.writes
        )  # fmt: skip
        assert system.sampling[name] == config.sampling
    save(system, tmp_path / "new")
    again = load(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["format"] == 2
    assert (again.stages, again.streams, again.sampling) == (system.stages, system.streams, system.sampling)


@pytest.mark.slow
def test_a_picture_is_drawn_again(system, tmp_path, monkeypatch):
    (drawn,) = text_to_image(system, ["a red circle"], seed=3)
    monkeypatch.chdir(OLD)
    again.run(again.Options(image=Path("picture.png"), out=tmp_path / "again.png"))
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), drawn)
    # On the machine that it comes from it is the same to the bit; on others its numbers are summed in another order.
    assert np.abs(pixels(OLD / "picture.png").astype(int) - drawn).mean() < 1


@pytest.mark.slow
def test_a_run_is_resumed(tmp_path):
    with tarfile.open(OLD / "prior.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    saved = json.loads((tmp_path / "prior" / "config.json").read_text())
    assert saved.pop("kind") == "prior"
    config = from_json(PriorConfig, saved)
    shutil.copytree(OLD / "bundle", tmp_path / "bundle")
    data = {"data_dir": str(tmp_path / "data")}
    run = {"workdir": str(tmp_path / "prior"), "steps": 4, "hang_timeout": 600}
    changed = tiny.replaced(config, clip=str(tmp_path / "bundle"), data=data, run=run)
    with pytest.warns(UserWarning, match="checkpoint 2 in .* has no digests, since an older version wrote it"):
        assert int(train(changed).step) == 4

    def losses(path: Path) -> dict[int, tuple[float, float]]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines}

    expected, found = losses(OLD / "prior_metrics.jsonl"), losses(tmp_path / "prior" / "metrics.jsonl")
    assert list(found) == list(expected) == [1, 2, 3, 4]
    for step in (3, 4):
        np.testing.assert_allclose(found[step], expected[step], rtol=1e-5)
