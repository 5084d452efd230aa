"""The whole of Karlo on either side, from the same captions and the same noise tapes."""

import dataclasses
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import UnCLIPPipeline, UnCLIPScheduler

from tests.parity.compare import CAPTIONS, scheduler_noise, tape, to_torch
from tests.parity.rounded import rounded
from unclip_jax.diffusion.noise import TapeNoise
from unclip_jax.editing.embeddings import tokenise
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.settings import Options, SamplingSettings
from unclip_jax.systems.system import Step, System, program_of

STEPS = {"prior": 5, "decoder": 5, "upsampler_0": 7}
GUIDED = {"prior": 4.0, "decoder": 8.0, "upsampler_0": 1.0}
"""Karlo's own guidance scales."""

Tapes = dict[str, TapeNoise]


def tapes_of(shapes: dict[str, tuple[int, ...]], first: int = 0) -> Tapes:
    """One tape for each stage; `first` numbers the draw."""
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


def our_images(system: System, tapes: Tapes, scales: dict[str, float] = GUIDED) -> np.ndarray:
    """The same by a system, with the tables of their schedulers."""
    settings = {
        name: dataclasses.replace(own, steps=STEPS[name], guidance_scale=scales[name])
        for name, own in system.sampling.items()
    }
    return to_images(sampled(rounded(system), tokenise(system, CAPTIONS), tapes, settings))


def sampled(
    system: System,
    inputs: dict[str, Any],
    tapes: Tapes,
    settings: dict[str, SamplingSettings],
    without: tuple[str, ...] = (),
) -> np.ndarray:
    """What the last stage makes of `inputs`, stage after stage, each with the noise of its tape."""
    values, name = dict(inputs), ""
    for name in system.path(inputs):
        step = Step(DiffusionStage.sample, Options(settings=settings[name], without=without))
        values[system.stages[name].writes] = program_of(system, name, step, values, tapes[name])()
    return np.asarray(values[system.stages[name].writes])


def to_images(pixels: np.ndarray) -> np.ndarray:
    """From [-1, 1] to [0, 1]."""
    return np.clip(pixels / 2 + 0.5, 0, 1)
