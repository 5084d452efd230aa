"""The blueprint of any stage by its name, for what treats all of them alike: planning and benchmarks."""

from typing import Any

from unclip_jax.bundle.parts import Kind
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.training.stages import clip, decoder, prior, upsampler
from unclip_jax.training.stages.common import Blueprint


def fitted(kind: Kind, config: Any, clip_spec: CLIPSpec) -> Any:
    """`config` with what its network takes from the frozen CLIP, where there is one."""
    if kind == "prior":
        return prior.fitted(config, clip_spec)
    return decoder.fitted(config, clip_spec) if kind == "decoder" else config


def blueprint_of(kind: Kind, config: Any, clip_spec: CLIPSpec) -> Blueprint:
    """The run that a stage's `config` describes; `clip_spec` is that of the frozen CLIP, where there is one."""
    if kind == "clip":
        return clip.blueprint(config)
    if kind == "upsampler":
        return upsampler.blueprint(config)
    stage = prior if kind == "prior" else decoder
    return stage.blueprint(fitted(kind, config, clip_spec), clip_spec)
