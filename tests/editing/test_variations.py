import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unclip_jax.cascade import decode
from unclip_jax.core.errors import UserError
from unclip_jax.editing.variations import variations
from unclip_jax.models import clip

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def images():
    size = tiny.bundle().part("clip").spec.image_tower.image_size
    return jnp.asarray(np.tanh(np.random.default_rng(0).standard_normal((3, size, size, 3), np.float32)))


def test_a_variation_is_decoded_from_the_embedding_alone(images):
    bundle = tiny.bundle()
    drawn = {each.part: each.value for each in variations(bundle, images, jax.random.key(0))}
    assert list(drawn) == ["clip", "decoder", "upsampler_0"]
    part = bundle.part("clip")
    np.testing.assert_allclose(drawn["clip"], clip.encode_image(part.spec, part.params, images), rtol=1e-4, atol=1e-6)
    # Whatever the caption, it is hidden.
    encoded = bundle.tokenizer.encode(["a red circle"] * 3, part.spec.text_tower.context)
    caption = jnp.asarray(encoded.tokens), jnp.asarray(encoded.mask)
    hidden, shown = (
        list(decode(bundle, drawn["clip"], *caption, jax.random.key(0), captioned=captioned))[-1].value
        for captioned in (False, True)
    )
    np.testing.assert_array_equal(hidden, drawn["upsampler_0"])
    assert np.abs(np.asarray(shown) - np.asarray(hidden)).max() > 1e-3


def test_variations_differ_by_index_and_not_by_batch(images):
    bundle = tiny.bundle()
    same = jnp.repeat(images[:1], 3, axis=0)

    def draw(rows, indices):
        return np.asarray(list(variations(bundle, rows, jax.random.key(0), indices=jnp.asarray(indices)))[-1].value)

    whole = draw(same, [0, 1, 2])
    assert min(np.abs(whole[0] - whole[i]).max() for i in (1, 2)) > 1e-3
    np.testing.assert_allclose(draw(same[:1], [2])[0], whole[2], atol=1e-5)
    # And by what the image is.
    assert np.abs(draw(images[1:2], [0])[0] - whole[0]).max() > 1e-3


def test_what_it_refuses(images):
    bundle = tiny.bundle()
    part = bundle.part("clip")
    blind = dataclasses.replace(part, spec=dataclasses.replace(part.spec, vision=None, contrastive=False))
    with pytest.raises(UserError, match="this CLIP has no image tower"):
        next(variations(dataclasses.replace(bundle, parts=bundle.parts | {"clip": blind}), images, jax.random.key(0)))
    with pytest.raises(ValueError, match="sees images of"):
        next(variations(bundle, images[:, :4, :4], jax.random.key(0)))
    without = {name: part for name, part in bundle.parts.items() if name != "decoder"}
    with pytest.raises(UserError, match="has no decoder"):
        list(variations(dataclasses.replace(bundle, parts=without), images, jax.random.key(0)))


def test_no_prior_is_needed(images):
    bundle = tiny.bundle()
    without = {name: part for name, part in bundle.parts.items() if name != "prior"}
    drawn = list(variations(dataclasses.replace(bundle, parts=without), images, jax.random.key(0), stop_at=8))
    assert [each.part for each in drawn] == ["clip", "decoder"]
