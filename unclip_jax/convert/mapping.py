"""Applies name maps to a checkpoint, and accounts for every tensor of it."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from unclip_jax.convert.layouts import Entry
from unclip_jax.convert.tensor_files import Tensors
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import HasShape, Params
from unclip_jax.models.base import Network
from unclip_jax.models.parameters import flatten, identity, unflatten
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems import unclip
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that is read when its numbers are needed, so that a model need not fit in memory."""

    shape: Shape
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=bool(copy))


@dataclasses.dataclass(frozen=True)
class Account:
    """What became of the tensors of one file: `merged` are parts of a tensor of ours, or held several."""

    path: str
    used: int
    merged: int
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        ignored = f"; ignored {', '.join(self.ignored)}" if self.ignored else ""
        merged = f", {self.merged} of them split" if self.merged else ""
        return f"{self.path}: {self.used + len(self.ignored)} tensors, {self.used} used{merged}{ignored}"


@dataclasses.dataclass(frozen=True)
class Imported:
    """A stage as it was found, with its parameters and the settings that its authors sample it with."""

    stage: DiffusionStage
    params: Params
    settings: SamplingSettings


def wanted(network: Network) -> dict[str, Shape]:
    """Return the shape of each tensor of a spec, by path."""
    return {name: tuple(leaf.shape) for name, leaf in flatten(network.abstract_params()).items()}


def imported_system(
    clip: Encoder,
    stages: Mapping[str, Imported],
    *,
    name: str,
    license: str,
    description: str,
    tokenizer: Tokenizer | None,
    stats: EmbeddingStats | None = None,
) -> System:
    """Return the system of a CLIP and the stages that were trained with it, with unCLIP's names."""
    # Reading a CLIP for its identity alone would be for nothing: saving it does.
    own = identity(clip.params) if stages else None
    conditioned = [each for each, found in stages.items() if found.stage.encoders]
    return System(
        name=name,
        license=license,
        description=description,
        encoders={"clip": clip},
        stages={each: found.stage for each, found in stages.items()},
        params={each: found.params for each, found in stages.items()},
        streams=unclip.streams(list(stages)),
        sampling={each: found.settings for each, found in stages.items()},
        identities={} if own is None else dict.fromkeys(["clip", *conditioned], own),
        tokenizer=tokenizer,
        stats=stats,
    )


def import_params(
    sources: Sequence[tuple[Tensors, Sequence[Entry]]],
    shapes: Mapping[str, Shape],
    ignored: Iterable[str] = (),
) -> tuple[Params, list[Account]]:
    """Return the parameters of `shapes`, to be read from files when needed.

    Args:
        sources: files, and what is taken from each.
        shapes: by path of ours, from the spec.
        ignored: shell patterns of their tensors that have no part in the network, such as buffers.

    Raises:
        UserError: a tensor is missing, unexpected or misshapen; naming the file and the tensor.
    """
    found: dict[str, LazyArray] = {}
    accounts = []
    for tensors, entries in sources:
        _check_names(tensors, entries, tuple(ignored))
        for entry in entries:
            found[entry.ours] = _lazy(tensors, entry, shapes)
        names = [entry.theirs for entry in entries]
        accounts.append(
            Account(
                path=str(tensors.path),
                used=len(set(names)),
                merged=sum(names.count(name) > 1 for name in set(names)),
                ignored=tuple(sorted(set(tensors.shapes) - set(names))),
            )
        )
    if set(found) != set(shapes):
        raise AssertionError(f"the name map and the network disagree on {sorted(set(found) ^ set(shapes))[:5]}")
    return unflatten(found), accounts


def export_tensors(entries: Sequence[Entry], params: Mapping[str, HasShape]) -> dict[str, LazyArray]:
    """Return their state dict, made of our parameters by path."""
    exported = {}
    for entry in entries:
        if entry.layout.to_theirs is None:
            raise AssertionError(f"{entry.theirs} holds more than {entry.ours}, so it cannot be written from that")
        to_theirs, value = entry.layout.to_theirs, params[entry.ours]
        shape = to_theirs(_blank(tuple(value.shape))).shape

        def read(to_theirs=to_theirs, value=value) -> np.ndarray:
            return np.asarray(to_theirs(np.asarray(value)), order="C")

        exported[entry.theirs] = LazyArray(shape, read)
    return exported


def _check_names(tensors: Tensors, entries: Sequence[Entry], ignored: tuple[str, ...]) -> None:
    names = {entry.theirs for entry in entries}
    problems = [f"tensor {name} is missing" for name in sorted(names - set(tensors.shapes))]
    problems += [
        f"tensor {name} is unexpected"
        for name in sorted(set(tensors.shapes) - names)
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored)
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{tensors.path}: {problems[0]}{more}; this is not the network that its config describes")


def _lazy(tensors: Tensors, entry: Entry, shapes: Mapping[str, Shape]) -> LazyArray:
    if entry.ours not in shapes:
        raise AssertionError(f"the name map has {entry.ours}, which the network has not")
    theirs, ours = tensors.shapes[entry.theirs], shapes[entry.ours]
    try:
        fits = entry.layout.to_ours(_blank(theirs)).shape == ours
    except ValueError:  # an axis that is not there, or that does not divide
        fits = False
    if not fits:
        back = entry.layout.to_theirs
        right = "" if back is None else f", not {list(back(_blank(ours)).shape)}"
        raise UserError(
            f"{tensors.path}: tensor {entry.theirs} has shape {list(theirs)}{right}; "
            "this is not the network that its config describes"
        )

    def read() -> np.ndarray:
        return entry.layout.to_ours(tensors.read(entry.theirs))

    return LazyArray(ours, read)


def _blank(shape: Shape) -> np.ndarray:
    """Return an array of that shape which takes no memory."""
    return np.broadcast_to(np.float32(0), shape)
