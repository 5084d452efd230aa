"""Trained systems in memory: ordered stages with their weights. A family is a function that returns its stages."""

from unclip_jax.systems.placing import place
from unclip_jax.systems.system import StageOutput, System, run

__all__ = ["StageOutput", "System", "place", "run"]
