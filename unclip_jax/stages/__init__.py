"""Stages, what a trained network does in a system, and their one compiled entry."""

from unclip_jax.stages.contrastive import ContrastiveStage
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.settings import Options, SamplingSettings
from unclip_jax.stages.stage import STAGES, Stage, Weights

# The one table from a name in JSON to a class.
STAGES |= {cls.TAG[1]: cls for cls in (DiffusionStage, ContrastiveStage)}

__all__ = ["STAGES", "ContrastiveStage", "DiffusionStage", "Options", "SamplingSettings", "Stage", "Weights"]
