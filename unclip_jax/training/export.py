"""From the checkpoints of training runs, and what another bundle has already, to a system.

Each run says in its checkpoint's meta what belongs to its weights (`unclip_jax.training.belongings`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.parameters import identity
from unclip_jax.stages.contrastive import ContrastiveStage
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.stages.stage import Stage
from unclip_jax.systems import unclip
from unclip_jax.systems.system import System
from unclip_jax.training.adapting import whole
from unclip_jax.training.belongings import Belongings
from unclip_jax.training.checkpoint import load_params


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What the newest checkpoint of a run holds, for a system."""

    params: Params
    belongings: Belongings

    @property
    def stage(self) -> Stage:
        """What was trained."""
        assert self.belongings.stage is not None
        return self.belongings.stage


def assemble(
    runs: dict[str, Path],
    *,
    streams: dict[str, int],
    base: System | None = None,
    name: str,
    license: str | None,
    description: str,
    step: Literal["best"] | None = None,
) -> System:
    """Assemble a system of the moving averages in the newest, or the best, checkpoints of the given runs.

    Args:
        runs: workdirs by the name that each is to have; stages in the order in which they run.
        streams: the stream of noise of each stage of the result.
        base: a system with what the runs do not make, at the place that its stages have there.
        name, description: as in `System`.
        step: None for the newest.
        license: as well; None for that of the weights that come from the base, or that the runs started from.

    Raises:
        UserError: if there is nothing to pack or no checkpoint, or if tokenizers or statistics of z_i differ.
    """
    if base is None:
        base = System(name=name, stages={})
    if not runs and not base.networks:
        raise UserError("nothing to pack; give at least one run")
    system = dataclasses.replace(base, name=name, description=description)
    licenses = [base.license] if base.networks.keys() - runs.keys() else []
    encoders, params, stages = dict(base.encoders), dict(base.params), dict(base.stages)
    sampling, identities, tokenizer = dict(base.sampling), dict(base.identities), base.tokenizer
    stats = {each: base.stats for each, stage in base.stages.items() if stage.needs_stats and each not in runs}
    for each, path in runs.items():
        run = read_run(path, step)
        own = run.belongings
        if isinstance(run.stage, ContrastiveStage):
            encoders[each] = Encoder(network=run.stage.network, params=run.params)
            identities[each] = identity(run.params)
            # Principal components are those of one CLIP's embeddings.
            system = dataclasses.replace(system, basis=None)
        else:
            stages[each], params[each] = run.stage, run.params
            identities.pop(each, None)
            sampling.pop(each, None)
        licenses.append(own.license or "")
        for encoder in own.identities.values():
            identities[each] = encoder
        if own.sampling is not None:
            sampling[each] = own.sampling
        if own.stats is not None:
            stats[each] = own.stats
        if own.tokenizer is not None:
            if tokenizer is not None and own.tokenizer != tokenizer:
                raise UserError(f"{path} has another tokenizer than those before; pack runs that share one")
            tokenizer = own.tokenizer
    order = sorted(stages, key=lambda stage: streams[stage])
    return dataclasses.replace(
        system,
        stats=_shared(stats),
        license=" AND ".join(dict.fromkeys(filter(None, licenses))) if license is None else license,
        encoders=encoders,
        stages={each: stages[each] for each in order},
        params=params,
        streams={each: streams[each] for each in order},
        sampling={each: own for each, own in sampling.items() if each in stages},
        identities=identities,
        tokenizer=tokenizer,
    )


def _shared(stats: Mapping[str, EmbeddingStats | None]) -> EmbeddingStats | None:
    """Return the statistics that all stages have; UserError where they differ."""
    (first, shared), *others = stats.items() or [("", None)]
    for name, own in others:
        if not jax.tree.all(jax.tree.map(np.array_equal, shared, own)):
            raise UserError(f"{first} and {name} normalise z_i by other statistics; pack stages that share them")
    return shared


def assemble_unclip(
    *,
    clip: Path | None = None,
    prior: Path | None = None,
    decoder: Path | None = None,
    upsamplers: Sequence[Path] = (),
    base: System | None = None,
    name: str,
    license: str | None,
    description: str,
    step: Literal["best"] | None = None,
) -> System:
    """Call `assemble` for unCLIP: upsamplers in the order in which they are applied, instead of all those in `base`.

    Raises UserError as `assemble`, and where a run is of another kind.
    """
    given = {"clip": clip, "prior": prior, "decoder": decoder}
    given |= {unclip.UPSAMPLER.format(index): path for index, path in enumerate(upsamplers)}
    runs = {each: path for each, path in given.items() if path is not None}
    for each, path in runs.items():
        kind, found = each.partition("_")[0], load_params(path)[1]["kind"]
        if kind != found:
            raise UserError(f"{path} is a {found} run, not a {kind} run; give each under its own option")
    if base is not None and upsamplers:
        gone = {each for each in base.stages if each.startswith(unclip.UPSAMPLER.format(""))}
        base = dataclasses.replace(
            base,
            stages={each: stage for each, stage in base.stages.items() if each not in gone},
            params={each: own for each, own in base.params.items() if each not in gone},
            sampling={each: own for each, own in base.sampling.items() if each not in gone},
            identities={each: own for each, own in base.identities.items() if each not in gone},
        )
    stages = [*(base.stages if base is not None else ()), *(each for each in runs if each != "clip")]
    streams = unclip.streams(stages)
    about = {"name": name, "license": license, "description": description}
    return assemble(runs, streams=streams, base=base, step=step, **about)


def read_run(path: Path, step: Literal["best"] | None = None) -> TrainedRun:
    """Read the newest checkpoint of a run, or the one that was the best on held-out examples: its moving average, an
    adapter merged into what it adapts; UserError where there is none."""
    params, meta = load_params(path, "ema", step)
    own = Belongings.of_meta(meta, str(path))
    return TrainedRun(whole(params, own, str(path)), own)
