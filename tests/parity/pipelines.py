"""The whole of Karlo on either side, from the same captions and the same noise tapes."""

import dataclasses
from unittest import mock

import jax.numpy as jnp
import numpy as np
import torch
from diffusers import UnCLIPPipeline, UnCLIPScheduler

from tests.parity import peers
from tests.parity.compare import CAPTIONS, scheduler_noise, tape, to_torch
from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import draw_embedding, draw_image, upsample
from unclip_jax.diffusion.noise import TapeNoise

STEPS = {"prior": 5, "decoder": 5, "upsampler_0": 7}
GUIDED = {"prior": 4.0, "decoder": 8.0, "upsampler_0": 1.0}
"""Karlo's own guidance scales."""

Tapes = dict[str, TapeNoise]


def tapes_of(shapes: dict[str, tuple[int, ...]], first: int = 0) -> Tapes:
    """One tape for each part; `first` numbers the draw."""
    return {name: tape(first + i, shapes[name], steps) for i, (name, steps) in enumerate(STEPS.items())}


def their_images(pipeline: UnCLIPPipeline, tapes: Tapes, scales: dict[str, float] = GUIDED) -> tuple[np.ndarray, int]:
    """Images in [0, 1], and how many numbers their schedulers did not clip in steps from t = 999."""
    unclipped, step = 0, UnCLIPScheduler.step

    def watched(self, output, timestep, sample, **others):
        nonlocal unclipped
        result = step(self, output, timestep=timestep, sample=sample, **others)
        limit = self.config.clip_sample_range
        if timestep == 999 and self.config.prediction_type == "epsilon":
            unclipped += int((result.pred_original_sample.abs() < limit).sum())
        return result

    with scheduler_noise(*tapes.values()), torch.no_grad(), mock.patch.object(UnCLIPScheduler, "step", watched):
        images = pipeline(
            CAPTIONS,
            prior_num_inference_steps=STEPS["prior"],
            decoder_num_inference_steps=STEPS["decoder"],
            super_res_num_inference_steps=STEPS["upsampler_0"],
            prior_latents=to_torch(tapes["prior"].x_T),
            decoder_latents=to_torch(tapes["decoder"].x_T),
            super_res_latents=to_torch(tapes["upsampler_0"].x_T),
            prior_guidance_scale=scales["prior"],
            decoder_guidance_scale=scales["decoder"],
            output_type="np",
        ).images
    return images, unclipped


def our_images(bundle: Bundle, tapes: Tapes, scales: dict[str, float] = GUIDED) -> np.ndarray:
    """The same by the functions of `unclip_jax.cascade`."""
    how = {
        name: dataclasses.replace(settings, steps=STEPS[name], parity=True, guidance_scale=scales[name])
        for name, settings in bundle.sampling.items()
    }
    encoded = bundle.tokenizer.encode(CAPTIONS, peers.CONTEXT)
    tokens, mask = jnp.asarray(encoded.tokens), jnp.asarray(encoded.mask)
    z_i = draw_embedding(bundle, tokens, mask, tapes["prior"], how["prior"])
    image = draw_image(bundle, z_i, tokens, mask, tapes["decoder"], how["decoder"])
    image = upsample(bundle.part("upsampler_0"), image, tapes["upsampler_0"], how["upsampler_0"])
    return np.clip(np.asarray(image) / 2 + 0.5, 0, 1)
