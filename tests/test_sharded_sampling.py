"""Prompts spread over devices, and weights that come and go with their stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.bundle import load
from unclip_jax.cascade import upsample
from unclip_jax.diffusion.noise import TapeNoise
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.sharding import place
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text_to_image import text_to_image

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPTS = [f"{n} rings" for n in "a two three four five six seven eight nine".split()]


@pytest.fixture(scope="module")
def images(tiny_bundle):
    """Drawn by one device, two at a time."""
    return text_to_image(tiny_bundle, PROMPTS, seed=3, batch_size=2)


def test_eight_devices_draw_the_same_images(tiny_bundle, images):
    mesh = make_mesh(MeshSpec())
    np.testing.assert_array_equal(text_to_image(tiny_bundle, PROMPTS, seed=3, batch_size=2, mesh=mesh), images)
    alone = text_to_image(tiny_bundle, PROMPTS, seed=3, batch_size=2, mesh=mesh, only=5)
    np.testing.assert_array_equal(alone, images[5:6])


def test_split_weights_draw_the_same_images(tiny_bundle, images):
    """Another program, with more rows at once, so a level of 255 may round to its neighbour."""
    mesh = make_mesh(MeshSpec(data=2, fsdp=4))
    decoder = place(tiny_bundle, mesh).part("decoder").params["down_1_0"]["conv_in"]["kernel"]
    assert decoder.addressable_shards[0].data.size == decoder.size // 4
    split = text_to_image(tiny_bundle, PROMPTS, seed=3, batch_size=2, mesh=mesh)
    assert np.abs(split.astype(int) - images).max() <= 1


def test_a_tape_stays_on_one_device(tiny_bundle):
    part, how = place(tiny_bundle, make_mesh(MeshSpec())).part("upsampler_0"), StageSettings(steps=2)
    images = jnp.zeros((8, part.low_res_size, part.low_res_size, 3))
    tape = TapeNoise(x_T=jnp.zeros((8, 16, 16, 3)), steps=jnp.zeros((2, 8, 16, 16, 3)))
    with pytest.raises(ValueError, match="TapeNoise on a mesh"):
        upsample(part, images, tape, how)


def test_weights_come_and_go_with_their_stage(tiny_folder, images):
    whole = sum(leaf.nbytes for part in load(tiny_folder).parts.values() for leaf in jax.tree.leaves(part.params))
    before = {id(array) for array in jax.live_arrays()}
    seen = []

    def read(parts):
        live = sum(array.nbytes for array in jax.live_arrays() if id(array) not in before)
        seen.append((parts, live))
        return load(tiny_folder, parts=parts)

    described = load(tiny_folder, weights=False)
    drawn = text_to_image(described, PROMPTS, seed=3, batch_size=2, read_parts=read)
    np.testing.assert_array_equal(drawn, images)
    assert [parts for parts, _ in seen] == [("clip", "prior"), ("clip", "decoder"), ("upsampler_0",)]
    # What is left of the stage before are its images.
    assert max(live for _, live in seen) < 0.2 * whole
