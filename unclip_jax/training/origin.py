"""Where the weights of a run come from: its own newest checkpoint, or the run or bundle that it starts from.

What belongs to them (`Belongings`) comes along: a run works with it, and a config that says otherwise is refused.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from unclip_jax.bundle import store
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.base import Denoiser, Network
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.training.adapting import bundled, whole
from unclip_jax.training.belongings import Belongings
from unclip_jax.training.checkpoint import FOLDER, SavedMeta, load_params, newest_meta
from unclip_jax.training.stage_configs import Config
from unclip_jax.training.statistics import normalisation
from unclip_jax.training.workdir import open_folder

AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Weights that are there already, and what belongs to them.

    Attributes:
        where: a run's workdir, or a bundle's folder or name.
        part: the encoder or stage of the bundle; None for a run.
        resumed: whether they are the run's own.
        encoders: where the encoders are that they were trained with, by name, as far as that is known.
    """

    where: str
    belongings: Belongings
    part: str | None = None
    resumed: bool = False
    encoders: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def whose(self) -> str:
        """The end of "x is not the one that ..."."""
        own = f"the run in {open_folder(self.where) / FOLDER} was started with"
        return own if self.resumed else f"the weights of {self.where} were trained with"

    @property
    def remedy(self) -> str:
        """What to do about an x that is another."""
        return f"give the same, or {'choose another workdir' if self.resumed else 'start from other weights'}"

    def params(self, network: Network) -> Params:
        """Read the weights, converted to fit `network` where it supports that (`Denoiser.start_from`)."""
        if self.part is None:
            params = whole(load_params(self.where)[0], self.belongings, self.where)
        else:
            params = bundled(self.where, self.part)
        return network.start_from(params) if isinstance(network, Denoiser) else params

    def inherit(self, own: Belongings, *, measure: bool = False) -> Belongings:
        """Return `own` with what it leaves open taken from these weights; with `measure` not the statistics of z_i, but
        for a run's own. Raises UserError where they contradict each other, and for deviations of 0."""
        theirs = self.belongings
        if measure and not self.resumed:
            theirs = dataclasses.replace(theirs, stats=None)
        if theirs.stats is not None and not (np.asarray(theirs.stats.std) > 0).all():
            raise UserError(
                f"the statistics of z_i that {self.whose} have a deviation that is not above 0; "
                f"{self.remedy.partition('or ')[2]}{'' if self.resumed else ', or measure others with --stats measure'}"
            )
        return own.inherit(theirs, self.whose, self.remedy)

    def shape(self, config: AnyConfig) -> AnyConfig:
        """Return a config with all that these weights decide as they have it: network, process, sampling settings, and
        the encoders where it is known where they are. Of the network, what changes no number stays."""
        found = self.belongings
        fields: dict[str, Any] = dict(self.encoders)
        if found.stage is not None:
            fields |= config.of_weights(found.stage)
        if hasattr(config, "sampling"):
            fields["sampling"] = found.sampling or SamplingSettings()
        if found.stats is not None:
            fields["normalise"] = normalisation(found.stats)
        return dataclasses.replace(config, **fields)  # pyright: ignore[reportArgumentType]

    def check(self, config: Config, stats: EmbeddingStats | None) -> None:
        """Refuse a config that contradicts the weights that a new run starts from; a resumed one is compared with its
        checkpoint's config (`Checkpoints.restore`).

        Args:
            config: fitted to its encoders.
            stats: those that were inherited, if any.

        Raises UserError, naming the field and both values.
        """
        if self.resumed or self.belongings.stage is None:
            return
        wanted = config.of_weights(self.belongings.stage)
        if stats is not None:
            wanted["normalise"] = normalisation(stats)
        for field, value in wanted.items():
            for name, ours, theirs in _differences(getattr(config, field), value, field):
                raise UserError(f"{name} is {ours!r}, but {self.whose} {theirs!r}; {self.remedy}")


def _differences(ours: object, theirs: object, path: str) -> Iterator[tuple[str, object, object]]:
    """Yield the fields in which two values differ, with both; of values of two classes the names of these."""
    if type(ours) is type(theirs) and dataclasses.is_dataclass(ours):
        for field in dataclasses.fields(ours):
            # A run may round as it likes.
            if field.name != "dtype":
                both = getattr(ours, field.name), getattr(theirs, field.name)
                yield from _differences(*both, f"{path}.{field.name}")
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        for index, both in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(*both, f"{path}[{index}]")
    elif ours != theirs:
        yield path, _name(ours), _name(theirs)


def _name(value: object) -> object:
    if not dataclasses.is_dataclass(value):
        return value
    return getattr(value, "TAG", ("", type(value).__name__))[1]


def find_origin(config: Config) -> Origin | None:
    """Find the weights that a run carries on from, or starts from; None for random ones.

    Raises UserError where there are no such weights, or the workdir holds a run of another kind.
    """
    return _of_own_run(config) or (find_start(config, config.start_from) if config.start_from else None)


def find_start(config: Config, where: str, writes: str | None = None) -> Origin:
    """Find weights in a run or a bundle for a run of the config's kind.

    Args:
        writes: the array that tells one stage of a bundle from others of its kind; that of the config's stage by
            default.

    Raises UserError where there are none, or several that might be meant.
    """
    if (open_folder(where) / FOLDER).is_dir():
        meta = newest_meta(where)
        if meta is None:
            raise UserError(f"no checkpoint in {open_folder(where) / FOLDER}; start from a run that has saved one")
        if meta["kind"] != config.kind:
            raise UserError(f"{where} is a {meta['kind']} run; start from a {config.kind} run or a bundle")
        return _of_meta(meta, where, config)
    system = store.describe(where)
    part = _part(system.networks, {name: stage.writes for name, stage in system.stages.items()}, config, writes, where)
    encoders = {name: where for name in config.encoder_paths() if name in system.encoders}
    return Origin(where=where, part=part, belongings=Belongings.of_part(system, part), encoders=encoders)


def starting_from(config: Config, where: str, writes: str | None = None) -> Config:
    """Return a config that starts from weights, with all that they decide as they have it, see `Origin.shape`.

    If the run has checkpoints already, these decide. `where` and `writes` are those of `find_start`. No device is
    touched, so that it may be called before the cluster is known.
    """
    origin = _of_own_run(config) or find_start(config, where, writes)
    return dataclasses.replace(origin.shape(config), start_from=where)  # pyright: ignore[reportArgumentType]


def _of_own_run(config: Config) -> Origin | None:
    meta = newest_meta(config.run.workdir)
    if meta is None:
        return None
    where = config.run.workdir
    if meta["kind"] != config.kind:
        folder = open_folder(where) / FOLDER
        raise UserError(f"{folder} holds a {meta['kind']} run, not a {config.kind}; choose another workdir")
    return dataclasses.replace(_of_meta(meta, where, config), resumed=True)


def _of_meta(meta: SavedMeta, where: str, config: Config) -> Origin:
    encoders = {name: str(meta["config"][name]) for name in config.encoder_paths() if meta["config"].get(name)}
    return Origin(where=where, belongings=Belongings.of_meta(meta, where), encoders=encoders)


def _part(networks: dict[str, Network], writes: dict[str, str], config: Config, wanted: str | None, where: str) -> str:
    """Name the part of a bundle that a run of the config's kind starts from."""
    alike = [name for name in networks if name.rstrip("0123456789").rstrip("_") == config.kind]
    named = alike or (list(writes) if config.kind == "stage" else [])
    wanted = wanted or config.stage().writes
    fitting = [name for name in named if writes.get(name, "") == wanted] or named
    if not fitting:
        raise UserError(f"bundle {where} has no {config.kind}; start from another bundle or run")
    if len(fitting) > 1:
        made = ", ".join(writes[name] for name in fitting)
        raise UserError(f"bundle {where} makes {made}, and no {wanted}; choose the size of one of these")
    (part,) = fitting
    if isinstance(networks[part], TimestepExperts) and not isinstance(config.stage().network, TimestepExperts):
        raise UserError(f"{part} of bundle {where} is several networks; start from one that is one")
    return part
