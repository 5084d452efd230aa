"""Checks that the parts of a system fit each other, weights their spec, and files what was written."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import xxhash

from unclip_jax.bundle.config import BundleConfig
from unclip_jax.core.digests import Altered, compared
from unclip_jax.core.errors import UserError
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.systems.system import System

Shape = tuple[int, ...]


def check_fit(system: System) -> None:
    """Refuse parts that were not made for each other, by their specs, so that weights need not be loaded.

    Raises:
        UserError: naming the two things that disagree.
    """
    for name in system.networks:
        if not name.isidentifier():
            raise UserError(f"a part is called {name!r}; use letters, digits and underscores")
    if len(system.networks) < len(system.encoders) + len(system.stages):
        raise UserError("an encoder and a stage have one name; give them two")
    if len(set(system.streams.values())) < len(system.streams):
        raise UserError("two stages draw from one stream of noise; give each its own")
    for name, number in system.streams.items():
        if not 0 <= number < 2**31:
            raise UserError(f"{name} draws from stream {number}; choose 0 to 2^31 - 1")
    _check_identity(system)
    _check_sizes(system)
    _check_tokenizer(system)
    for name, stage in system.stages.items():
        try:
            stage.check()
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    _check_order(system)
    for name, settings in system.sampling.items():
        if name not in system.stages:
            raise UserError(f"there are sampling settings for {name}, which is not sampled; take them out")
        stage = system.stages[name]
        if isinstance(stage, DiffusionStage):
            settings.check(f"sampling of {name}", stage.process)


@contextmanager
def as_written(folder: Path, config: BundleConfig, parts: Collection[str]) -> Iterator[None]:
    """Compare what the body reads, the weights of `parts` and all that is small, with what was written.

    Raises UserError, naming the file that was altered.
    """
    # Bundles of version 0.1 have the slower sha256 alone.
    algorithm, known = (xxhash.xxh3_128, config.digests) if config.digests else (hashlib.sha256, config.files)
    unread = {f"{name}.safetensors" for name in (*config.encoders, *config.stages) if name not in parts}
    try:
        with compared({folder / name: known[name] for name in known if name not in unread}, algorithm):
            yield
    except Altered as error:
        raise UserError(f"{error}; copy the bundle again") from error


def check_tensors(where: str, found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> None:
    """Refuse tensors that are missing, unexpected or misshapen.

    Args:
        where: the file, for the message.
        found: shape by name.
        wanted: shape by name, as the spec has it.

    Raises:
        UserError: naming the first tensor of those.
    """
    problems = [f"tensor {name} is missing" for name in wanted if name not in found]
    problems += [f"tensor {name} is unexpected" for name in found if name not in wanted]
    problems += [
        f"tensor {name} has shape {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{where}: {problems[0]}{more}; the weights are not those of the spec")


def _check_identity(system: System) -> None:
    known = list(system.identities.items())
    for name, identity in known[1:]:
        first_name, first = known[0]
        if identity != first:
            raise UserError(
                f"{name} belongs to CLIP {identity[:12]} but {first_name} to CLIP {first[:12]}; "
                "their embeddings mean different things, use parts that share one CLIP"
            )


def _check_sizes(system: System) -> None:
    """Refuse networks whose common sizes differ."""
    first: dict[str, tuple[str, int]] = {}
    for name, network in system.networks.items():
        for size, value in network.shared_sizes().items():
            other, known = first.setdefault(size, (name, value))
            if value != known:
                raise _disagreement(f"{other}'s {size}", known, f"{name}'s {size}", value)
    if system.stats is not None and "embed_dim" in first:
        name, embed_dim = first["embed_dim"]
        if system.stats.mean.shape[0] != embed_dim:
            raise _disagreement(f"{name}'s embed_dim", embed_dim, "the statistics' length", system.stats.mean.shape[0])


def _check_tokenizer(system: System) -> None:
    for name, network in system.networks.items():
        sizes = network.shared_sizes()
        if "vocab_size" not in sizes:
            continue
        theirs = system.tokenizer
        if theirs is None:
            raise UserError(f"{name} reads captions but there is no tokenizer; add the one it learned with")
        for size, value in (("vocab_size", theirs.vocab_size), ("eos_id", theirs.eos_id)):
            if sizes[size] != value:
                raise _disagreement(f"{name}'s {size}", sizes[size], "the tokenizer's", value)


def _check_order(system: System) -> None:
    """Refuse a stage whose array is made after it. An array that no stage makes is an input, unless stages before make
    arrays of that kind in other sizes: then the stage was meant to start from one of them. So it was where it starts
    from an earlier one and nothing starts from the last.
    """
    made: list[str] = []
    writers = {stage.writes: name for name, stage in system.stages.items()}
    if len(writers) < len(system.stages):
        raise UserError(f"of the stages {', '.join(system.stages)} two make the same array; leave one of them out")
    read = {array for stage in system.stages.values() for array in stage.reads}
    for name, stage in system.stages.items():
        for array in stage.reads:
            alike = [other for other in made if other.partition("_")[0] == array.partition("_")[0]]
            passed_over = array in alike[:-1] and alike[-1] not in read
            if passed_over or (array not in made and (array in writers or alike)):
                before = f"{writers[alike[-1]]} makes {alike[-1]}" if alike else f"{writers[array]} makes that later"
                raise UserError(f"{before} but {name} starts from {array}; pack stages whose sizes meet")
        made.append(stage.writes)


def _disagreement(name: str, value: int, other: str, theirs: int) -> UserError:
    return UserError(f"{name} is {value} but {other} is {theirs}; use parts made for each other")
