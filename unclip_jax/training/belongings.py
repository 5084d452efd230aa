"""What weights mean nothing without. It is stored with them, and goes where they go.

    stage          network, process, space and conditions: the function that the weights are of
    tokenizer      which caption a row of the embedding table stands for
    identities     the embedding space of each encoder that they were trained with
    stats          the scale of the space that a prior works in
    sampling       the settings that a bundle samples them with
    license        the licence of the weights that they were trained from
    adapter        of an adapter, which weights it adapts

A checkpoint has it in `extra` of its meta, a bundle in config.json and beside the weights.
"""

import dataclasses

import numpy as np

from unclip_jax.adapters.lora import LoRAConfig
from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import JsonDict
from unclip_jax.stages.contrastive import ContrastiveStage
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.stages.stage import Stage
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.checkpoint import SavedMeta
from unclip_jax.training.stage_configs import CONFIGS

_IDENTITY = "_identity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterOf:
    """What an adapter is, and what it adapts: weights of this identity, which were in a run or a bundle's part."""

    lora: LoRAConfig
    base: str
    where: str
    part: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Belongings:
    """What belongs to weights; None, or no identity, where it is open or not known."""

    stage: Stage | None = None
    tokenizer: Tokenizer | None = None
    identities: dict[str, str] = dataclasses.field(default_factory=dict)
    """By the name of an encoder."""
    stats: EmbeddingStats | None = None
    sampling: SamplingSettings | None = None
    license: str | None = None
    adapter: AdapterOf | None = None
    """Where the weights are no network's but an adapter's, trained by `unclip_jax.training.adapting`."""

    @classmethod
    def of_meta(cls, meta: SavedMeta, where: str) -> "Belongings":
        """Read those of a checkpoint; of one that does not say what was trained, by its config.

        Raises UserError for a run of a kind that is not known, and for what cannot be read.
        """
        extra = meta["extra"]
        if "stage" in extra:
            stage = from_json(Stage, extra["stage"], f"{where}: stage")
        elif meta["kind"] in CONFIGS:
            stage = from_json(CONFIGS[meta["kind"]], meta["config"], where).stage()
        else:
            raise UserError(f"{where} is a {meta['kind']} run, which is no part of a system; give another")
        names = ("tokenizer", "sampling", "stats", "license", "adapter")
        tokenizer, sampling, stats, license, adapter = (extra.get(name) for name in names)
        return cls(
            stage=stage,
            tokenizer=from_json(Tokenizer, tokenizer, f"{where}: tokenizer") if tokenizer else None,
            identities={name.removesuffix(_IDENTITY): str(extra[name]) for name in extra if name.endswith(_IDENTITY)},
            stats=from_json(_Stats, stats, f"{where}: stats").arrays() if stats else None,
            sampling=from_json(SamplingSettings, sampling, f"{where}: sampling") if sampling else None,
            license=str(license) if license else None,
            adapter=from_json(AdapterOf, adapter, f"{where}: adapter") if adapter else None,
        )

    @classmethod
    def of_part(cls, system: System, part: str) -> "Belongings":
        """Return those of an encoder's or a stage's weights in a system."""
        if part in system.encoders:
            stage = ContrastiveStage(network=system.encoders[part].clip)
            return cls(stage=stage, tokenizer=system.tokenizer, license=system.license or None)
        stage, known = system.stages[part], system.identities.get(part)
        return cls(
            stage=stage,
            tokenizer=system.tokenizer if stage.encoders else None,
            identities={} if known is None else dict.fromkeys(stage.encoders, known),
            stats=system.stats if stage.needs_stats else None,
            sampling=system.sampling.get(part),
            license=system.license or None,
        )

    def to_meta(self) -> JsonDict:
        """Return `extra` of a checkpoint's meta; `of_meta` inverts it."""
        extra: JsonDict = {f"{name}{_IDENTITY}": identity for name, identity in self.identities.items()}
        for name in ("stage", "tokenizer", "sampling", "license", "adapter"):
            if (value := getattr(self, name)) is not None:
                extra[name] = to_json(value)
        if self.stats is not None:
            extra["stats"] = to_json(_Stats.of(self.stats))
        return extra

    def inherit(self, theirs: "Belongings", whose: str, remedy: str) -> "Belongings":
        """Return these with what they leave open taken from `theirs`.

        Args:
            whose: completes "the tokenizer is not the one that ...", "the run in x was started with".
            remedy: what to do about it.

        Raises UserError for an encoder or a tokenizer that is another, naming both.
        """
        for name, own in self.identities.items():
            if name in theirs.identities and own != theirs.identities[name]:
                raise _another(name, own, theirs.identities[name], whose, remedy)
        if None not in (self.tokenizer, theirs.tokenizer) and self.tokenizer != theirs.tokenizer:
            assert self.tokenizer is not None and theirs.tokenizer is not None
            raise _another("tokenizer", self.tokenizer.identity, theirs.tokenizer.identity, whose, remedy)
        return dataclasses.replace(
            self,
            tokenizer=self.tokenizer if self.tokenizer is not None else theirs.tokenizer,
            stats=self.stats if self.stats is not None else theirs.stats,
            license=self.license if self.license is not None else theirs.license,
        )


def _another(name: str, own: str, theirs: str, whose: str, remedy: str) -> UserError:
    return UserError(f"the {name} is not the one that {whose}: it is {own[:12]}, not {theirs[:12]}; {remedy}")


@dataclasses.dataclass(frozen=True)
class _Stats:
    """Statistics in JSON: float32 numbers as the doubles that they are, so that they come back exactly."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, stats: EmbeddingStats) -> "_Stats":
        return cls(*(tuple(np.asarray(value).tolist()) for value in (stats.mean, stats.std)))

    def arrays(self) -> EmbeddingStats:
        return EmbeddingStats(mean=np.asarray(self.mean, np.float32), std=np.asarray(self.std, np.float32))
