"""`python -m train.measure`: statistics of a bundle, kept in it."""

import dataclasses
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from train import measure
from unclip_jax.bundle import load, store
from unclip_jax.core.errors import UserError
from unclip_jax.sampling.text_to_image import text_to_embedding
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.training.statistics import LEVELS

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i, record in enumerate(tiny.records()[:16]):
        Image.fromarray(record.image).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(record.captions[0])
    return folder


def run(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNCLIP_JAX_NO_CACHE", "1")
        patch.setattr(sys, "argv", ["measure", *map(str, arguments)])
        measure.main()


@pytest.fixture(scope="module")
def measured(tiny_folder, data, tmp_path_factory):
    """A bundle with statistics."""
    folder = tmp_path_factory.mktemp("measured") / "bundle"
    shutil.copytree(tiny_folder, folder)
    run(folder, "--data", data, "--examples", 16, "--batch-size", 8)
    return folder


def test_weights_stay_and_statistics_come_back(measured, tiny_folder):
    before, after = load(tiny_folder), load(measured)
    assert before.hash != after.hash
    for name in before.networks:
        file = f"{name}.safetensors"
        assert (measured / file).read_bytes() == (tiny_folder / file).read_bytes()
    store.verify_files(measured)
    assert before.basis is None and before.stage("prior").x0_variance is None
    variance = after.stage("prior").x0_variance
    assert len(variance.alpha_bar) == LEVELS and min(variance.variance) > 0
    width = after.encoder("clip").clip.embed_dim
    assert after.basis.components.shape == (15, width)
    np.testing.assert_allclose(after.basis.components @ after.basis.components.T, np.eye(15), atol=1e-5)
    assert np.all(np.diff(after.basis.variance) <= 0)
    # They are kept when the bundle is saved again, and read with CLIP alone.
    assert load(measured, parts=("decoder",)).basis is None


def test_saved_again_they_are_kept(measured, tmp_path):
    store.save(load(measured), tmp_path / "again")
    again = load(tmp_path / "again")
    np.testing.assert_array_equal(again.basis.components, load(measured).basis.components)
    assert again.stage("prior").x0_variance == load(measured).stage("prior").x0_variance


@pytest.mark.slow
def test_analytic_draws_with_them_and_not_without(measured, tiny_bundle):
    how = SamplingSettings(sampler="analytic", steps=2)
    bundle = load(measured, parts=("clip", "prior"))
    z_i = text_to_embedding(bundle, ["a ring"], seed=0, settings=how)
    ddpm = text_to_embedding(bundle, ["a ring"], seed=0, settings=dataclasses.replace(how, sampler="ddpm"))
    assert np.isfinite(z_i).all() and not np.allclose(z_i, ddpm)
    with pytest.raises(UserError, match="needs the network's statistics, .* python -m train.measure BUNDLE"):
        text_to_embedding(tiny_bundle, ["a ring"], seed=0, settings=how)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--examples", "4"), "4 examples in batches of 64"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_mistakes(tiny_folder, arguments, message):
    with pytest.raises(UserError, match=message):
        run(tiny_folder, *arguments)


def test_no_such_stage(measured):
    bundle = load(measured)
    with pytest.raises(UserError, match="has no stage priors; did you mean 'prior'"):
        store.add_statistics(measured, bundle.basis, {"priors": bundle.stage("prior").x0_variance})
    assert jax.tree.leaves(load(measured).basis)
