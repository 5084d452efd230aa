"""unCLIP as a list of stages (2204.06125, section 2).

(1) z_i ~ prior(y)                      of `num_candidates` samples the one with the largest z_i . z_t is kept
(2) x_base ~ decoder(z_i, y)
(3) x_next ~ upsampler(x)               conditioned on x enlarged, as in training
"""

from unclip_jax.diffusion import AnyProcessSpec, Weighting
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.base import Denoiser
from unclip_jax.stages.conditions import Caption, CLIPImage, InpaintMask, LowResImage
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.spaces import Embeddings, Pixels

PRIOR, DECODER, UPSAMPLER = "prior", "decoder", "upsampler_{}"
"""Names of the stages."""
STREAMS = {"prior": 0, "decoder": 1, "upsampler": 2}
"""Their streams of noise; upsampler i has 2 + i."""


def prior_stage(
    network: Denoiser, process: AnyProcessSpec, *, drop_caption: float = 0.1, weighting: Weighting = "none"
) -> DiffusionStage:
    """Return the stage of equation (1): from a caption to CLIP's embedding of an image of it."""
    return DiffusionStage(
        network=network,
        process=process,
        conditions=(Caption(drop=drop_caption),),
        output="z_i",
        space=Embeddings(),
        weighting=weighting,
    )


def decoder_stage(
    network: Denoiser,
    process: AnyProcessSpec,
    *,
    drop_z_i: float = 0.1,
    drop_caption: float = 0.5,
    full_mask_rate: float = 0.5,
    weighting: Weighting = "none",
) -> DiffusionStage:
    """Return the stage of equation (2): from an embedding, and the caption, to a small image."""
    return DiffusionStage(
        network=network,
        process=process,
        conditions=(CLIPImage(drop=drop_z_i), Caption(drop=drop_caption), InpaintMask(full_rate=full_mask_rate)),
        output=f"image_{network.sample_shape[0]}",
        space=Pixels(),
        weighting=weighting,
    )


def upsampler_stage(
    network: Denoiser,
    process: AnyProcessSpec,
    low_res: LowRes,
    *,
    full_mask_rate: float = 0.5,
    weighting: Weighting = "none",
) -> DiffusionStage:
    """Return the stage of equation (3): from a small image to a larger one."""
    return DiffusionStage(
        network=network,
        process=process,
        conditions=(LowResImage(low_res=low_res), InpaintMask(full_rate=full_mask_rate)),
        output=f"image_{network.sample_shape[0]}",
        space=Pixels(),
        weighting=weighting,
    )


def streams(names: list[str]) -> dict[str, int]:
    """Return the stream of noise of each stage."""
    found = {}
    for name in names:
        kind, _, number = name.partition("_")
        found[name] = STREAMS[kind] + int(number or 0)
    return found
