"""config.json, format 2; `digest` is that of all the rest of it."""

import dataclasses
from collections.abc import Mapping

from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.digests import json_digest
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import JsonDict
from unclip_jax.models.base import Network
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.stage import Stage

FORMAT = 2
DIGEST = "digest"


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
    by its path, which is what names it; `digests` what is compared when it is read (`unclip_jax.core.digests`), since
    version 0.2."""

    name: str
    license: str
    description: str
    encoders: dict[str, EncoderConfig]
    stages: dict[str, StageConfig]
    sampling: dict[str, SamplingSettings]
    tokenizer_identity: str | None
    files: dict[str, str]
    digests: dict[str, str] = dataclasses.field(default_factory=dict)

    def write(self) -> JsonDict:
        """Return the content of config.json."""
        data = {"format": FORMAT, **to_json(self)}
        return data | {DIGEST: json_digest(data)}

    @classmethod
    def read(cls, data: Mapping[str, object], path: str) -> "BundleConfig":
        """Return the inverse of `write`; UserError for anything else."""
        fields = {name: value for name, value in data.items() if name != DIGEST}
        config = from_json(cls, {name: value for name, value in fields.items() if name != "format"}, path)
        if DIGEST in data and data[DIGEST] != json_digest(fields):
            raise UserError(
                f'{path} is not as it was written; copy the bundle again, or take the line "{DIGEST}" out of it where '
                "it was changed on purpose"
            )
        return config
