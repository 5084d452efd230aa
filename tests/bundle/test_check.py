import dataclasses

import jax.numpy as jnp
import pytest

from tests.bundle.helpers import edit
from unclip_jax import bundle as bundles
from unclip_jax.bundle import Bundle
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.models.prior import EmbeddingStats


def respec(name: str, **change):
    def apply(bundle: Bundle) -> Bundle:
        part = bundle.parts[name]
        changed = dataclasses.replace(part, spec=dataclasses.replace(part.spec, **change))
        return dataclasses.replace(bundle, parts=bundle.parts | {name: changed})

    return apply


def repart(name: str, **change):
    def apply(bundle: Bundle) -> Bundle:
        changed = dataclasses.replace(bundle.parts[name], **change)
        return dataclasses.replace(bundle, parts=bundle.parts | {name: changed})

    return apply


def rename(old: str, new: str):
    def apply(bundle: Bundle) -> Bundle:
        parts = {new if name == old else name: part for name, part in bundle.parts.items()}
        return dataclasses.replace(bundle, parts=parts)

    return apply


def revocabulary(bundle: Bundle) -> Bundle:
    text = dataclasses.replace(bundle.parts["clip"].spec.text, vocab_size=9)
    return respec("clip", text=text)(bundle)


MISFITS = {
    "prior width": (respec("prior", embed_dim=7), "clip's embed_dim is 6 but prior's embed_dim is 7"),
    "decoder width": (respec("decoder", embed_dim=7), "but decoder's embed_dim is 7"),
    "statistics": (
        lambda bundle: dataclasses.replace(bundle, stats=EmbeddingStats(mean=jnp.ones(3), std=jnp.ones(3))),
        "but the statistics' length is 3",
    ),
    "no statistics": (lambda bundle: dataclasses.replace(bundle, stats=None), "without statistics of z_i"),
    "text width": (respec("prior", text_width=9), "clip's text.width is 8 but prior's text_width is 9"),
    "decoder text": (respec("decoder", text_width=9), "clip's text.width is 8 but decoder's text_width is 9"),
    "context": (respec("prior", context=9), "clip's text.context is 5 but prior's context is 9"),
    "vocabulary": (revocabulary, "clip's vocab_size is 9 but the tokenizer's is"),
    "no tokenizer": (
        lambda bundle: dataclasses.replace(bundle, tokenizer=None),
        "clip reads captions but there is no tokenizer",
    ),
    "identity": (
        repart("decoder", clip_identity="d" * 64),
        "decoder belongs to CLIP dddddddddddd but clip to CLIP cccccccccccc",
    ),
    "sizes": (repart("upsampler_0", low_res_size=4), "decoder makes 8 px but upsampler_0 starts from 4 px"),
    "second size": (repart("upsampler_1", low_res_size=8), "upsampler_0 makes 16 px but upsampler_1 starts"),
    "factor": (respec("upsampler_1", image_size=40), "upsampler_1 goes from 16 to 40 px; use a whole factor"),
    "no low_res": (respec("upsampler_0", low_res=False), "upsampler_0 takes no low-resolution image"),
    "low_res decoder": (respec("decoder", low_res=True), "decoder wants a low-resolution image"),
    "variance": (
        repart("decoder", process=ProcessSpec()),
        "decoder's learned_sigma is True but its process has variance 'small'",
    ),
    "no process": (repart("prior", process=None), "prior has no process"),
    "gap": (rename("upsampler_1", "upsampler_2"), "number them from upsampler_0"),
    "kind": (rename("prior", "prior_0"), "part prior_0 is of kind prior"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_parts_that_do_not_fit_are_refused(whole, tmp_path, name):
    change, message = MISFITS[name]
    with pytest.raises(UserError) as error:
        bundles.save(change(whole), tmp_path / "x")
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_fit_are_refused_on_loading(copy):
    edit(copy, lambda config: config["parts"]["decoder"].update(clip_identity="d" * 64))
    with pytest.raises(UserError, match="belongs to CLIP dddddddddddd"):
        bundles.load(copy)


def test_weights_of_another_spec_are_not_written(whole, tmp_path):
    with pytest.raises(UserError, match=r"clip: tensor class_token has shape \[8\], not \[16\] \(and"):
        vision = dataclasses.replace(whole.parts["clip"].spec.vision, width=16)
        bundles.save(respec("clip", vision=vision)(whole), tmp_path / "x")
