"""config.json, format 2."""

import dataclasses
from typing import Any

from unclip_jax.core.config import from_json, to_json
from unclip_jax.models.base import Network
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.stage import Stage

FORMAT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A frozen network that stages need."""

    network: Network
    identity: str | None = None
    """That of its weights as they were trained (`unclip_jax.models.parameters.identity`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stage, its stream of noise, and the identity of the encoder that it was trained with."""

    stage: Stage
    stream: int
    identity: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """What a bundle's folder holds; stages in the order in which they run. `files` has the sha256 of every other file,
    by its path."""

    name: str
    license: str
    description: str
    encoders: dict[str, EncoderConfig]
    stages: dict[str, StageConfig]
    sampling: dict[str, SamplingSettings]
    tokenizer_identity: str | None
    files: dict[str, str]

    def write(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {"format": FORMAT, **to_json(self)}

    @classmethod
    def read(cls, data: dict[str, Any], path: str) -> "BundleConfig":
        """Return the inverse of `write`; UserError for anything else."""
        return from_json(cls, {name: value for name, value in data.items() if name != "format"}, path)
