"""The mathematics of diffusion: arrays in, arrays out; it knows no network, and networks know none of it."""

from unclip_jax.diffusion.edm import EDM, EDMSpec
from unclip_jax.diffusion.flow import Flow, FlowSpec, dimension_shift
from unclip_jax.diffusion.gaussian import PosteriorGaussian, ProcessSpec, VariancePreserving
from unclip_jax.diffusion.guidance import Guidance, Threshold
from unclip_jax.diffusion.losses import loss
from unclip_jax.diffusion.noise import KeyNoise, NoiseSource, TapeNoise
from unclip_jax.diffusion.process import ModelFn, Process, Spacing, Weighting
from unclip_jax.diffusion.samplers import (
    DDIM,
    DDPM,
    AnalyticDPM,
    Carry,
    Denoised,
    DPMSolver,
    Heun,
    Sampler,
    Trajectory,
    X0Variance,
    invert,
    sample,
    squared_errors,
)
from unclip_jax.diffusion.schedule import Schedule

AnyProcessSpec = ProcessSpec | EDMSpec | FlowSpec

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "AnalyticDPM",
    "AnyProcessSpec",
    "Carry",
    "DPMSolver",
    "Denoised",
    "EDMSpec",
    "Flow",
    "FlowSpec",
    "Guidance",
    "Heun",
    "KeyNoise",
    "ModelFn",
    "NoiseSource",
    "PosteriorGaussian",
    "Process",
    "ProcessSpec",
    "Sampler",
    "Schedule",
    "Spacing",
    "TapeNoise",
    "Threshold",
    "Trajectory",
    "VariancePreserving",
    "Weighting",
    "X0Variance",
    "dimension_shift",
    "invert",
    "loss",
    "sample",
    "squared_errors",
]
