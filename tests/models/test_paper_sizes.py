"""The presets have the sizes that the papers print. Nothing is allocated: only shapes are computed."""

import pytest

from unclip_jax.models import clip, prior, unet
from unclip_jax.models.parameters import parameter_count

VISION_TOWER = ("patch_embed", "class_token", "vision_positions", "norm_pre", "vision_blocks", "norm_post")


def test_vision_tower_is_vit_h():
    params = clip.vit_h16().abstract_params()
    tower = {name: params[name] for name in VISION_TOWER}
    # "ViT-Huge, 32 layers, hidden size 1280, 632M" (Dosovitskiy et al., 2010.11929, table 1).
    assert parameter_count(tower) == pytest.approx(632e6, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "size"),
    [
        # GLIDE counts 1.2 billion for this Transformer (2112.10741, section 4); 2204.06125, table 3, rounds to 1B.
        (prior.paper_prior(), 1.2e9),
        (unet.paper_decoder(), 3.5e9),
        (unet.paper_upsampler_256(), 700e6),
        (unet.paper_upsampler_1024(), 300e6),
    ],
    ids=["prior", "decoder", "upsampler_256", "upsampler_1024"],
)
def test_networks_have_the_sizes_of_table_3(spec, size):
    assert parameter_count(spec.abstract_params()) == pytest.approx(size, rel=0.1)
