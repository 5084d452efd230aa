import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unclip_jax.core.errors import UserError
from unclip_jax.editing.upscaling import upscaling_stages
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.settings import Options
from unclip_jax.systems.system import run

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.slow
def test_it_is_what_the_system_does_after_its_decoder():
    system, key, indices = tiny.system(), jax.random.key(0), jnp.asarray([3, 4])
    images = jnp.asarray(np.tanh(np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)))
    (made,) = run(system, {"image_8": images}, key, indices=indices)
    stage, settings = system.stage("upsampler_0"), system.sampling["upsampler_0"]
    noise = stage.noise(jax.random.fold_in(key, system.streams["upsampler_0"]), indices, settings)
    sample = jax.jit(DiffusionStage.sample, static_argnums=(0, 1))
    expected = sample(stage, Options(settings=settings), system.weights("upsampler_0"), {"image_8": images}, noise)
    assert made.stage == "upsampler_0"
    np.testing.assert_array_equal(made.value, expected)


def test_which_upsamplers_run():
    system = tiny.system()
    first = system.stage("upsampler_0")
    network = dataclasses.replace(first.network, image_size=32)
    second = dataclasses.replace(first, network=network, output="image_32")
    two = dataclasses.replace(system, stages=system.stages | {"upsampler_1": second})
    assert upscaling_stages(two) == ["upsampler_0", "upsampler_1"]
    assert upscaling_stages(two, 16) == ["upsampler_1"]
    assert upscaling_stages(two, None, 16) == ["upsampler_0"]
    with pytest.raises(UserError, match="from_size is 9; bundle tiny starts from 8, 16 px"):
        upscaling_stages(two, 9)
    with pytest.raises(UserError, match="stop_at is 16; from 16 px bundle tiny makes 32 px"):
        upscaling_stages(two, 16, 16)
    with pytest.raises(UserError, match="bundle tiny has no upsamplers"):
        upscaling_stages(tiny.without("upsampler_0"))
