import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unclip_jax.cascade import stage_noise, upsample
from unclip_jax.core.errors import UserError
from unclip_jax.editing.upscaling import upscale, upscaling_stages

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_it_is_what_the_cascade_does_after_its_decoder():
    bundle, key = tiny.bundle(), jax.random.key(0)
    images = jnp.asarray(np.tanh(np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)))
    (drawn,) = upscale(bundle, images, key, indices=jnp.asarray([3, 4]))
    noise = stage_noise(key, "upsampler_0", jnp.asarray([3, 4]))
    expected = upsample(bundle.parts["upsampler_0"], images, noise, bundle.sampling["upsampler_0"])
    assert drawn.part == "upsampler_0"
    np.testing.assert_array_equal(drawn.value, expected)


def test_which_upsamplers_run():
    bundle = tiny.bundle()
    first = bundle.parts["upsampler_0"]
    second = dataclasses.replace(first, spec=dataclasses.replace(first.spec, image_size=32), low_res_size=16)
    two = dataclasses.replace(bundle, parts=bundle.parts | {"upsampler_1": second})
    assert upscaling_stages(two) == ["upsampler_0", "upsampler_1"]
    assert upscaling_stages(two, 16) == ["upsampler_1"]
    assert upscaling_stages(two, None, 16) == ["upsampler_0"]
    with pytest.raises(UserError, match="from_size is 9; bundle tiny starts from 8, 16 px"):
        upscaling_stages(two, 9)
    with pytest.raises(UserError, match="stop_at is 16; from 16 px bundle tiny makes 32 px"):
        upscaling_stages(two, 16, 16)
    none = dataclasses.replace(bundle, parts={"clip": bundle.parts["clip"]})
    with pytest.raises(UserError, match="bundle tiny has no upsamplers"):
        upscaling_stages(none)
