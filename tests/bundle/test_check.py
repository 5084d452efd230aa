import dataclasses

import jax.numpy as jnp
import pytest

from tests.bundle.helpers import edit
from unclip_jax import bundle as bundles
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.stages.conditions import InpaintMask, LowResImage
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems.system import System


def restage(name: str, **change):
    def apply(system: System) -> System:
        changed = dataclasses.replace(system.stages[name], **change)
        return dataclasses.replace(system, stages=system.stages | {name: changed})

    return apply


def respec(name: str, **change):
    def apply(system: System) -> System:
        network = dataclasses.replace(system.networks[name], **change)
        if name in system.stages:
            return restage(name, network=network)(system)
        encoder = Encoder(network=network, params=system.encoders[name].params)
        return dataclasses.replace(system, encoders=system.encoders | {name: encoder})

    return apply


def replace(**change):
    return lambda system: dataclasses.replace(system, **change)


def rename(old: str, new: str):
    def apply(system: System) -> System:
        fields = ("stages", "params", "streams", "sampling", "identities")
        renamed = {
            field: {new if key == old else key: value for key, value in getattr(system, field).items()}
            for field in fields
        }
        return dataclasses.replace(system, **renamed)

    return apply


def revocabulary(system: System) -> System:
    text = dataclasses.replace(system.encoders["clip"].clip.text_tower, vocab_size=9)
    return respec("clip", text=text)(system)


def low_res(scale: int):
    return (LowResImage(low_res=LowRes(scale=scale)), InpaintMask())


MISFITS = {
    "prior width": (respec("prior", embed_dim=7), "clip's embed_dim is 6 but prior's embed_dim is 7"),
    "decoder width": (respec("decoder", embed_dim=7), "but decoder's embed_dim is 7"),
    "statistics": (
        replace(stats=EmbeddingStats(mean=jnp.ones(3), std=jnp.ones(3))),
        "but the statistics' length is 3",
    ),
    "no statistics": (replace(stats=None), "the prior comes without statistics of z_i"),
    "text width": (respec("prior", text_width=9), "clip's text_width is 8 but prior's text_width is 9"),
    "decoder text": (respec("decoder", text_width=9), "clip's text_width is 8 but decoder's text_width is 9"),
    "context": (respec("prior", context=9), "clip's context is 5 but prior's context is 9"),
    "vocabulary": (revocabulary, "clip's vocab_size is 9 but the tokenizer's is"),
    "no tokenizer": (replace(tokenizer=None), "clip reads captions but there is no tokenizer"),
    "identity": (
        lambda system: dataclasses.replace(system, identities=system.identities | {"decoder": "d" * 64}),
        "decoder belongs to CLIP dddddddddddd but clip to CLIP cccccccccccc",
    ),
    "sizes": (
        restage("upsampler_0", conditions=low_res(4)),
        "decoder makes image_8 but upsampler_0 starts from image_4; pack stages whose sizes meet",
    ),
    "second size": (
        restage("upsampler_1", conditions=low_res(4)),
        "upsampler_0 makes image_16 but upsampler_1 starts from image_8",
    ),
    "factor": (
        lambda system: restage("upsampler_1", output="image_40")(respec("upsampler_1", image_size=40)(system)),
        "upsampler_0 makes image_16 but upsampler_1 starts from image_20",
    ),
    "no whole factor": (restage("upsampler_1", conditions=low_res(3)), "upsampler_1: 32 px is not 3 times a whole"),
    "no low_res": (respec("upsampler_0", low_res=False), "upsampler_0: the network takes no low-resolution image"),
    "low_res decoder": (respec("decoder", low_res=True), "decoder: the network wants a low-resolution image"),
    "variance": (
        restage("decoder", process=ProcessSpec()),
        "decoder: the network's learned_sigma is True but its process has variance 'small'",
    ),
    "two of one": (restage("upsampler_1", output="image_16"), "two make the same array; leave one of them out"),
    "order": (
        lambda system: dataclasses.replace(system, stages=dict(reversed(system.stages.items()))),
        "upsampler_0 makes that later but upsampler_1 starts from image_16",
    ),
    "streams": (
        lambda system: dataclasses.replace(system, streams=system.streams | {"decoder": 0}),
        "two stages draw from one stream of noise",
    ),
    "a name that is no file's": (rename("prior", "../prior"), "a part is called '../prior'; use letters, digits"),
    "one name for two": (rename("prior", "clip"), "an encoder and a stage have one name; give them two"),
    "settings of nothing": (
        replace(sampling={"priors": SamplingSettings()}),
        "there are sampling settings for priors, which is not sampled; take them out",
    ),
    "settings": (
        replace(sampling={"prior": SamplingSettings(steps=2000)}),
        "sampling of prior: steps is 2000; choose 1 to 1000",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_parts_that_do_not_fit_are_refused(whole, tmp_path, name):
    change, message = MISFITS[name]
    with pytest.raises(UserError) as error:
        bundles.save(change(whole), tmp_path / "x")
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_fit_are_refused_on_loading(copy):
    edit(copy, lambda config: config["stages"]["decoder"].update(identity="d" * 64))
    with pytest.raises(UserError, match="belongs to CLIP dddddddddddd"):
        bundles.load(copy)


def test_weights_of_another_spec_are_not_written(whole, tmp_path):
    with pytest.raises(UserError, match=r"clip: tensor class_token has shape \[8\], not \[16\] \(and"):
        vision = dataclasses.replace(whole.encoders["clip"].clip.image_tower, width=16)
        bundles.save(respec("clip", vision=vision)(whole), tmp_path / "x")
