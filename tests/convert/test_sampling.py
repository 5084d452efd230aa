"""The commands of `sample/` run on an imported bundle as they run on any other."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sample import embed, text_to_image, variations
from unclip_jax import bundle as bundles
from unclip_jax.core.errors import run_cli
from unclip_jax.images.png import read_text
from unclip_jax.models.base import Network
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems.system import run as run_system

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def folder(karlo_system, clip_spec, tmp_path_factory):
    """Karlo with an image tower besides, its weights small enough for pictures that are not all black and white."""
    clip = dataclasses.replace(clip_spec, contrastive=False, embed_dim=64)
    rng = np.random.default_rng(3)

    def small(network: Network):
        def draw(leaf):
            return np.asarray(rng.normal(size=leaf.shape) / np.sqrt(3 * max(np.prod(leaf.shape[:-1]), 1)), np.float32)

        return jax.tree.map(draw, network.abstract_params())

    system = dataclasses.replace(
        karlo_system,
        encoders={"clip": Encoder(network=clip, params=small(clip))},
        params={name: small(stage.network) for name, stage in karlo_system.stages.items()},
        identities={},
    )
    path = tmp_path_factory.mktemp("imported") / "karlo"
    bundles.save(system, path)
    return path


@pytest.fixture
def run(monkeypatch, folder):
    monkeypatch.setenv("UNCLIP_JAX_NO_CACHE", "1")

    def run(command, *words) -> None:
        monkeypatch.setattr(sys, "argv", ["x", *map(str, words), "--bundle", str(folder)])
        run_cli(command.main)

    return run


@pytest.mark.slow
def test_text_to_image(run, tmp_path, capsys):
    steps = ["--prior.steps", 2, "--decoder.steps", 2, "--upsamplers.steps", 3]
    run(text_to_image, "a red circle above the blue square", "--num-images", 2, "--out", tmp_path / "x.png", *steps)
    image = np.asarray(Image.open(tmp_path / "x.png"))
    assert image.shape == (32, 66, 3) and (image[:, :32] != image[:, 34:]).any()
    settings = read_text(tmp_path / "x.png")["settings"]
    assert '"sampler": "ddpm"' in settings and '"guidance_scale": 8.0' in settings and '"limit": 5.0' in settings
    assert "upsampler_0 (3 of 3)" in capsys.readouterr().err


@pytest.mark.slow
def test_variations_and_embeddings(run, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    words = ["--num-images", 2, "--out", tmp_path / "v.png", "--decoder.steps", 2, "--stop-at", 16]
    run(variations, tmp_path / "red.png", *words)
    assert np.asarray(Image.open(tmp_path / "v.png")).shape == (16, 52, 3)
    run(embed, "a red circle", "--out", tmp_path / "z.npz", "--prior.steps", 2)
    z_i = np.load(tmp_path / "z.npz")["z_i"]
    # Raw embeddings, as Karlo's are, and not of length 1.
    assert z_i.shape == (1, 64) and abs(np.linalg.norm(z_i) - 1) > 0.1


@pytest.mark.slow
def test_each_expert_acts_in_its_own_steps(folder):
    system = bundles.load(folder)
    given = {"image_16": jnp.zeros((1, 16, 16, 3))}
    settings = {"upsampler_0": SamplingSettings(sampler="ddpm", steps=4)}

    def sample(system, params) -> np.ndarray:
        changed = dataclasses.replace(system, params=system.params | {"upsampler_0": params})
        (made,) = run_system(changed, given, jax.random.key(0), settings=settings)
        return np.asarray(made.value)

    params, stage = system.params["upsampler_0"], system.stage("upsampler_0")
    first, last = params["expert_1"], params["expert_0"]
    both = sample(system, params)
    alone = dataclasses.replace(stage, network=stage.network.expert)
    one = sample(dataclasses.replace(system, stages=system.stages | {"upsampler_0": alone}), first)
    # The last network changes the last step, and that alone: with the first in its place the two programs agree.
    assert np.abs(both - one).max() > 1e-4
    np.testing.assert_allclose(sample(system, {"expert_1": first, "expert_0": first}), one, atol=1e-5)
    assert np.abs(sample(system, {"expert_1": last, "expert_0": last}) - both).max() > 1e-4
