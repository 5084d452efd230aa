"""What a bundle is told about itself."""

import dataclasses
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from unclip_jax.bundle import load, store
from unclip_jax.core.errors import UserError
from unclip_jax.editing.probing import fit_basis, project
from unclip_jax.eval import statistics
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text_to_image import text_to_embedding

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i, record in enumerate(tiny.records()[:16]):
        Image.fromarray(record.image).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(record.caption)
    return folder


def run(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["statistics", *map(str, arguments)])
        statistics.main()


@pytest.fixture(scope="module")
def told(tiny_folder, data, tmp_path_factory):
    """A bundle with statistics."""
    folder = tmp_path_factory.mktemp("told") / "bundle"
    shutil.copytree(tiny_folder, folder)
    run(folder, "--data", data, "--examples", 16, "--batch-size", 8)
    return folder


def test_weights_stay_and_statistics_come_back(told, tiny_folder):
    before, after = load(tiny_folder), load(told)
    assert before.hash != after.hash
    for name in before.parts:
        file = f"{name}.safetensors"
        assert (told / file).read_bytes() == (tiny_folder / file).read_bytes()
    store.verify_files(told)
    assert before.basis is None and before.parts["prior"].x0_variance is None
    variance = after.parts["prior"].x0_variance
    assert len(variance.alpha_bar) == statistics.LEVELS and min(variance.variance) > 0
    width = after.parts["clip"].spec.embed_dim
    assert after.basis.components.shape == (15, width)
    np.testing.assert_allclose(after.basis.components @ after.basis.components.T, np.eye(15), atol=1e-5)
    assert np.all(np.diff(after.basis.variance) <= 0)
    # They are kept when the bundle is saved again, and read with CLIP alone.
    assert load(told, parts=("decoder",)).basis is None


def test_saved_again_they_are_kept(told, tmp_path):
    store.save(load(told), tmp_path / "again")
    again = load(tmp_path / "again")
    np.testing.assert_array_equal(again.basis.components, load(told).basis.components)
    assert again.parts["prior"].x0_variance == load(told).parts["prior"].x0_variance


def test_analytic_draws_with_them_and_not_without(told, tiny_bundle):
    how = StageSettings(sampler="analytic", steps=2)
    bundle = load(told, parts=("clip", "prior"))
    z_i = text_to_embedding(bundle, ["a ring"], seed=0, settings=how)
    ddpm = text_to_embedding(bundle, ["a ring"], seed=0, settings=dataclasses.replace(how, sampler="ddpm"))
    assert np.isfinite(z_i).all() and not np.allclose(z_i, ddpm)
    with pytest.raises(UserError, match="needs the network's statistics, .* unclip_jax.eval.statistics"):
        text_to_embedding(tiny_bundle, ["a ring"], seed=0, settings=how)


def test_probing_is_coarse_to_fine():
    rng = np.random.default_rng(0)
    z_i = np.float32(rng.normal(size=(50, 8)) * np.array([5, 3, 2, 1, 0.5, 0.2, 0.1, 0.1]))
    z_i = jnp.asarray(z_i / np.linalg.norm(z_i, axis=1, keepdims=True))
    basis = fit_basis(np.asarray(z_i))
    errors = [float(np.square(project(z_i, basis, k) - z_i).mean()) for k in range(9)]
    assert np.all(np.diff(errors) <= 1e-9) and errors[-1] < 1e-12 < errors[0]
    np.testing.assert_allclose(np.linalg.norm(project(z_i, basis, 3), axis=1), 1, rtol=1e-5)
    with pytest.raises(UserError, match="has 8 components; ask for 0 to that many, not 9"):
        project(z_i, basis, 9)
    with pytest.raises(UserError, match="3 embeddings of 8 numbers have 2 components"):
        fit_basis(np.asarray(z_i[:3]), 5)
    assert fit_basis(np.asarray(z_i), 3).components.shape == (3, 8)


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


def test_no_such_part(told):
    bundle = load(told)
    with pytest.raises(UserError, match="no part priors"):
        store.add_statistics(told, bundle.basis, {"priors": bundle.parts["prior"].x0_variance})
    assert jax.tree.leaves(load(told).basis)
