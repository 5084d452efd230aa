"""Variations: images decoded from their embeddings alone. tests/sample has inversion, and latents in files."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unclip_jax.core.errors import UserError
from unclip_jax.editing.embeddings import embed_images
from unclip_jax.editing.latents import decoding_request, encode_latents
from unclip_jax.images.pixels import to_float
from unclip_jax.sampling.session import Session

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def images():
    """In bytes, of the size that CLIP sees."""
    size = tiny.system().encoder("clip").clip.image_tower.image_size
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)


def embedded(images, system=None):
    """z_i as latents have it, whose x_T is not asked for."""
    names = [str(number) for number in range(len(images))]
    return encode_latents(system or tiny.system(), (images, images), names, batch_size=2, settings=None).z_i


def outputs(z_i, system=None, **options):
    """{stage: what it made}"""
    system = system or tiny.system()
    request = decoding_request(system, z_i, seed=0, **options)
    return {each.stage: np.asarray(each.value) for each in Session(system).submit(request)}


@pytest.mark.slow
def test_latents_without_inversion_are_what_clip_sees(images):
    names = ["a", "b", "c"]
    latents = encode_latents(tiny.system(), (images, images), names, batch_size=2, settings=None)
    assert latents.names == names and latents.x_T is None and latents.settings is None
    expected = tiny.system().encoder("clip").encode_image(jnp.asarray(to_float(images)))
    np.testing.assert_allclose(latents.z_i, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_variation_is_decoded_from_the_embedding_alone(images):
    z_i = embedded(images)
    made = outputs(z_i)
    assert list(made) == ["decoder", "upsampler_0"]
    # Whatever the caption, it has no effect, unless it is asked for.
    captions = ["a red circle"] * 3
    request = decoding_request(tiny.system(), z_i, seed=0, captions=captions)
    without = Session(tiny.system()).result(dataclasses.replace(request, without=("caption",)))
    np.testing.assert_array_equal(without, made["upsampler_0"])
    captioned = outputs(z_i, captions=captions)["upsampler_0"]
    assert np.abs(captioned - made["upsampler_0"]).max() > 1e-3


@pytest.mark.slow
def test_variations_differ_by_index_and_not_by_batch(images):
    z_i = embedded(images)
    same = np.repeat(z_i[:1], 3, axis=0)

    def sample(rows, indices):
        return outputs(rows, indices=np.asarray(indices))["upsampler_0"]

    whole = sample(same, [0, 1, 2])
    assert min(np.abs(whole[0] - whole[i]).max() for i in (1, 2)) > 1e-3
    np.testing.assert_allclose(sample(same[:1], [2])[0], whole[2], atol=1e-5)
    # And by what the image is.
    assert np.abs(sample(z_i[1:2], [0])[0] - whole[0]).max() > 1e-3


def test_what_it_refuses(images):
    system = tiny.system()
    encoder = system.encoder("clip")
    network = dataclasses.replace(encoder.clip, vision=None, contrastive=False)
    blind = dataclasses.replace(system, encoders={"clip": encoder.replace(network=network)})
    with pytest.raises(UserError, match="this CLIP has no image tower"):
        embedded(images, blind)
    with pytest.raises(ValueError, match="sees images of"):
        embed_images(system, jnp.asarray(to_float(images[:, :4, :4])))
    with pytest.raises(UserError, match="bundle tiny has no tokenizer"):
        embedded(images, dataclasses.replace(system, tokenizer=None))
    without = tiny.without("decoder")
    with pytest.raises(UserError, match="bundle tiny has no decoder"):
        outputs(embedded(images), without, until="decoder")
    with pytest.raises(UserError, match="bundle tiny makes no image_8, only z_i, image_16; give it, or use a bundle"):
        outputs(embedded(images), without)


@pytest.mark.slow
def test_no_prior_is_needed(images):
    assert list(outputs(embedded(images), tiny.without("prior"), until="decoder")) == ["decoder"]
