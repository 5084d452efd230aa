"""An imported prior trains on in the space that it came with."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from tests.convert.tokenizer import CONTEXT
from tests.helpers import assert_trees_equal
from tests.tiny import weights
from train.recipes import tiny
from unclip_jax import bundle as bundles
from unclip_jax.convert.export import export_karlo
from unclip_jax.convert.kandinsky_prior import import_kandinsky_prior
from unclip_jax.convert.karlo import import_karlo
from unclip_jax.data.config import DataConfig
from unclip_jax.editing.embeddings import tokenise
from unclip_jax.stages.encoders import Encoder
from unclip_jax.systems.system import run
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.export import assemble_unclip
from unclip_jax.training.origin import starting_from
from unclip_jax.training.run import train

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(params=["kandinsky", "karlo"])
def imported(request, karlo_system, clip_spec, tmp_path):
    """A prior with both towers of its CLIP, as a bundle: Kandinsky's, or Karlo's beside its decoder and upsampler."""
    network = dataclasses.replace(clip_spec, contrastive=False, embed_dim=64)
    clip = Encoder(network=network, params=weights(network, 0))
    params = {name: weights(stage.network, 1) for name, stage in karlo_system.stages.items()}
    hub = tmp_path / "hub"
    export_karlo(dataclasses.replace(karlo_system, encoders={"clip": clip}, params=params, identities={}), hub)
    if request.param == "karlo":
        bundles.save(import_karlo(hub, "theirs")[0], tmp_path / "theirs")
        return tmp_path / "theirs"
    (hub / "prior_scheduler").rename(hub / "scheduler")
    (hub / "feature_extractor").rename(hub / "image_processor")
    (hub / "model_index.json").write_text('{"_class_name": "KandinskyV22PriorPipeline"}')
    bundles.save(import_kandinsky_prior(hub, "theirs")[0], tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def red(tmp_path):
    """Pictures that are unlike any that the weights have seen."""
    (tmp_path / "red").mkdir()
    for i in range(8):
        Image.new("RGB", (32, 32), (255, 8 * i, 0)).save(tmp_path / "red" / f"{i}.png")
        (tmp_path / "red" / f"{i}.txt").write_text("the red square")
    return tmp_path / "red"


def embedding(system):
    """What the prior makes of a caption, with the bundle's own settings but for their number of steps."""
    settings = {"prior": dataclasses.replace(system.sampling["prior"], steps=4)}
    inputs = tokenise(system, ["the blue circle above"])
    (made,) = run(system, inputs, jax.random.key(0), until="prior", settings=settings)
    return np.asarray(made.value)


@pytest.mark.slow
def test_a_step_at_rate_0_changes_nothing(imported, red, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = starting_from(tiny.prior(), str(imported))
    assert config.model.context == CONTEXT and config.process.num_steps == 1000
    train(
        dataclasses.replace(
            config,
            data=DataConfig(source=str(red), batch_size=8),
            optim=OptimConfig(learning_rate=0.0),
            run=RunConfig(workdir=str(tmp_path / "run"), steps=1, tensorboard=False),
        )
    )
    before = bundles.load(imported)
    about = {"name": "mine", "license": "", "description": ""}
    bundles.save(assemble_unclip(prior=tmp_path / "run", base=before, **about), tmp_path / "mine")
    after = bundles.load(tmp_path / "mine")
    assert after.sampling == before.sampling and after.stages["prior"] == before.stages["prior"]
    np.testing.assert_array_equal(after.stats.mean, before.stats.mean)
    np.testing.assert_array_equal(after.stats.std, before.stats.std)
    assert_trees_equal(after.params["prior"], before.params["prior"])
    np.testing.assert_array_equal(embedding(after), embedding(before))
