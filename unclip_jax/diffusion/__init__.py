"""The mathematics of diffusion: arrays in, arrays out; it knows no network, and networks know none of it."""

from unclip_jax.diffusion.gaussian import PosteriorGaussian, Process, ProcessSpec
from unclip_jax.diffusion.guidance import Guidance, ModelFn, Threshold
from unclip_jax.diffusion.losses import loss
from unclip_jax.diffusion.noise import KeyNoise, NoiseSource, TapeNoise
from unclip_jax.diffusion.samplers import (
    DDIM,
    DDPM,
    Analytic,
    DPMSolver,
    Sampler,
    Trajectory,
    X0Variance,
    invert,
    sample,
    squared_errors,
)
from unclip_jax.diffusion.schedule import Schedule

__all__ = [
    "DDIM",
    "DDPM",
    "Analytic",
    "DPMSolver",
    "Guidance",
    "KeyNoise",
    "ModelFn",
    "NoiseSource",
    "PosteriorGaussian",
    "Process",
    "ProcessSpec",
    "Sampler",
    "Schedule",
    "TapeNoise",
    "Threshold",
    "Trajectory",
    "X0Variance",
    "invert",
    "loss",
    "sample",
    "squared_errors",
]
