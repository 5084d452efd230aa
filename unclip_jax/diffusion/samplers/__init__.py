"""Samplers, one algorithm per file, and the loop that runs any of them."""

from unclip_jax.diffusion.samplers.analytic import AnalyticDPM, X0Variance, squared_errors
from unclip_jax.diffusion.samplers.ddim import DDIM
from unclip_jax.diffusion.samplers.ddpm import DDPM
from unclip_jax.diffusion.samplers.dpm_solver import DPMSolver
from unclip_jax.diffusion.samplers.heun import Heun
from unclip_jax.diffusion.samplers.inversion import invert
from unclip_jax.diffusion.samplers.loop import Trajectory, sample
from unclip_jax.diffusion.samplers.sampler import Carry, Denoised, Sampler

__all__ = [
    "DDIM",
    "DDPM",
    "AnalyticDPM",
    "Carry",
    "DPMSolver",
    "Denoised",
    "Heun",
    "Sampler",
    "Trajectory",
    "X0Variance",
    "invert",
    "sample",
    "squared_errors",
]
