"""config.json of format 1, in which a part's kind said what its network is and what it does.

clip                           an encoder
prior, decoder, upsampler_i    stages of unCLIP, whose order and streams of noise follow from their names
"""

import dataclasses
from typing import Any, Literal

from unclip_jax.bundle.config import BundleConfig, EncoderConfig, StageConfig
from unclip_jax.core.config import from_json
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.diffusion.samplers import X0Variance
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.base import Denoiser
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems import unclip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One network of the system."""

    kind: Literal["clip", "prior", "decoder", "upsampler"]
    spec: dict[str, Any]
    process: ProcessSpec | None = None
    clip_identity: str | None = None
    low_res_size: int | None = None
    x0_variance: X0Variance | None = None
    experts: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """config.json."""

    format: int
    name: str
    license: str
    description: str
    parts: dict[str, Part]
    sampling: dict[str, SamplingSettings]
    tokenizer_identity: str | None
    files: dict[str, str]


def read(data: object, path: str) -> BundleConfig:
    """Translate a config of format 1 to the current one; UserError for anything else."""
    old = from_json(Config, data, path)
    encoders, stages = {}, {}
    for name in _in_order(old.parts):
        part, where = old.parts[name], f"{path}: parts.{name}"
        if part.kind == "clip":
            network = from_json(CLIPSpec, part.spec, f"{where}.spec")
            encoders[name] = EncoderConfig(network=network, identity=part.clip_identity)
        else:
            stage = _stage(part, where)
            stream = unclip.streams([name])[name]
            stages[name] = StageConfig(stage=stage, stream=stream, identity=part.clip_identity)
    return BundleConfig(
        name=old.name,
        license=old.license,
        description=old.description,
        encoders=encoders,
        stages=stages,
        sampling=old.sampling,
        tokenizer_identity=old.tokenizer_identity,
        files=old.files,
    )


def _in_order(parts: dict[str, Part]) -> list[str]:
    for name, part in parts.items():
        kind, _, number = name.rpartition("_")
        if (kind if part.kind == "upsampler" and number.isdecimal() else name) != part.kind:
            raise UserError(f"part {name} is of kind {part.kind}; give it the name of its kind")
    known = ("clip", "prior", "decoder")
    upsamplers = sorted((name for name in parts if name not in known), key=lambda name: int(name.rpartition("_")[2]))
    return [name for name in known if name in parts] + upsamplers


def _stage(part: Part, where: str) -> DiffusionStage:
    network: Denoiser = from_json(PriorSpec if part.kind == "prior" else UNetSpec, part.spec, f"{where}.spec")
    if part.process is None:
        raise UserError(f"{where}.process: missing; say which diffusion it was trained to reverse")
    if part.experts:
        network = TimestepExperts(expert=network, boundaries=tuple(map(float, part.experts)))
    if part.kind == "prior":
        stage = unclip.prior_stage(network, part.process)
    elif part.kind == "decoder":
        stage = unclip.decoder_stage(network, part.process)
    else:
        size = network.sample_shape[0]
        if not part.low_res_size or size % part.low_res_size:
            raise UserError(f"{where}: goes from {part.low_res_size} to {size} px; use a whole factor")
        stage = unclip.upsampler_stage(network, part.process, LowRes(scale=size // part.low_res_size))
    return dataclasses.replace(stage, x0_variance=part.x0_variance)
