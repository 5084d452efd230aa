"""The blueprint of any stage by its name, for what treats all of them alike: planning and benchmarks."""

from typing import Any

from unclip_jax.bundle.parts import Kind
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.training.stages import clip, decoder, prior, upsampler
from unclip_jax.training.stages.common import Blueprint


def blueprint_of(kind: Kind, config: Any, clip_spec: CLIPSpec) -> Blueprint:
    """The run that a stage's `config` describes; `clip_spec` is that of the frozen CLIP, where there is one."""
    if kind == "clip":
        return clip.blueprint(config)
    if kind == "upsampler":
        return upsampler.blueprint(config)
    if kind == "prior":
        return prior.blueprint(config, clip_spec)
    return decoder.blueprint(config, clip_spec)
