"""Small networks with random parameters, and what the tests of several networks ask."""

import functools

import jax
import numpy as np

from tests.nn.reference import quick_jit, random_params
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec

TEXT = TextSpec(vocab_size=11, context=5, width=8, num_layers=1, num_heads=2, eos_id=2)
CLIP = CLIPSpec(
    embed_dim=6,
    vision=VisionSpec(image_size=8, patch_size=4, width=8, num_layers=1, num_heads=2),
    text=TEXT,
)
PRIOR = PriorSpec(embed_dim=6, context=5, text_width=8, width=16, num_layers=2, num_heads=2)
DECODER = UNetSpec(
    image_size=8,
    channels=8,
    channel_mult=(1, 2),
    num_blocks=1,
    learned_sigma=True,
    attention_resolutions=(4,),
    head_channels=4,
    groups=2,
    embed_dim=6,
    context_width=8,
    text=TEXT,
)
UPSAMPLER = UNetSpec(
    image_size=32, channels=4, channel_mult=(1, 2), num_blocks=1, learned_sigma=False, groups=2, low_res=True
)

apply = quick_jit(lambda spec, *arguments: spec.apply(*arguments), static_argnums=0)
encode_text = quick_jit(CLIPSpec.encode_text, static_argnums=0)
encode_image = quick_jit(CLIPSpec.encode_image, static_argnums=0)


@functools.cache
def params_of(spec):
    """Random parameters, also where a fresh network has zeros; not to be changed in place."""
    return random_params(spec.abstract_params())


def moved(a, b) -> np.ndarray:
    """Per example, the largest difference."""
    return np.abs(np.asarray(a) - np.asarray(b)).reshape(len(a), -1).max(1)


def paths(tree) -> list[str]:
    return ["/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def without_gradient(gradients) -> set[str]:
    """Paths of the parameters whose gradient is zero up to rounding."""
    leaves = [np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)]
    return {path for path, leaf in zip(paths(gradients), leaves, strict=True) if leaf < 1e-6 * max(leaves)}
