"""Training: the state, one step for every stage, the loop, checkpoints and metrics."""

from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.export import assemble, assemble_unclip
from unclip_jax.training.run import train
from unclip_jax.training.stage_configs import CLIPConfig, DecoderConfig, PriorConfig, StageConfig, UpsamplerConfig

__all__ = [
    "CLIPConfig",
    "DecoderConfig",
    "OptimConfig",
    "PriorConfig",
    "RunConfig",
    "StageConfig",
    "UpsamplerConfig",
    "assemble",
    "assemble_unclip",
    "train",
]
