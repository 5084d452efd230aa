"""The files of one checkpoint, and which of several is read.

    STEP/params, STEP/ema       the parameters and their moving average, so that sampling reads no more than it needs
    STEP/state                  the rest of the state
    STEP/meta                   JSON
    STEP/ITEM/digests.json      digests of ITEM's files (`unclip_jax.core.digests`), written before the step counts

On several hosts each digests the files that it wrote, into ITEM/digests.N.json, whose own digest is in digests.json;
when they read, each compares a share. A bucket has no digests of ours: it keeps checksums of its own, and to compare
would be to read everything twice. Checkpoints of version 0.1 have none either, and all arrays in `state`.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint.future import ChainedFuture, Future

from unclip_jax.core.digests import compare, compared, file_digest
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import JsonDict
from unclip_jax.training.state import State
from unclip_jax.training.workdir import is_remote

DIGESTS = "digests.json"
_OWN_DIGESTS = "digests.{}.json"
_OWN_FILES = "ocdbt.process_{}"
"""Where Orbax puts the arrays' files of a process."""
_COMMITTED = "commit_success.txt"

T = TypeVar("T")


class SavedMeta(TypedDict):
    """What a checkpoint has said about itself, as JSON."""

    step: int
    kind: str
    config: JsonDict
    extra: JsonDict
    progress: dict[str, list[float]]
    validation: JsonDict
    versions: dict[str, str]


def handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Return what saves each item."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name in ("params", "ema", "state"):
        registry.add(name, ocp.args.StandardSave, _Arrays())
    registry.add("meta", ocp.args.JsonSave, _Json())
    return registry


def saved_items(state: State, meta: SavedMeta) -> ocp.args.Composite:
    """Return what to save, by item."""
    arrays = {name: ocp.args.StandardSave(tree) for name, tree in _split(state).items()}
    return ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arrays)


def read_state(folder: epath.Path, abstract: State) -> State:
    """Read all arrays of a checkpoint, laid out as `abstract`."""
    if not (folder / "ema").is_dir():
        return _restore(folder / "state", abstract)
    found = {name: _restore(folder / name, tree) for name, tree in _split(abstract).items()}
    return State(params=found["params"], ema=found["ema"], **found["state"])


def read_tree(folder: epath.Path, which: str) -> PyTree[np.ndarray]:
    """Read the parameters or their average alone, as nested dicts of whole arrays."""
    handler, item = ocp.PyTreeCheckpointHandler(), folder / which
    old = not item.is_dir()
    if old:
        item = folder / "state"
    with compared(_digests(item)):
        wanted = handler.metadata(item).tree
        wanted = {which: wanted[which]} if old else wanted
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=old)
        tree = handler.restore(item, args=args)
    return tree[which] if old else tree


def read_meta(folder: epath.Path) -> SavedMeta:
    """Read what a checkpoint says about itself; ValueError where that makes no sense.

    `progress` says what is printed and no more: it is {} where it makes no sense. `validation`, which `tracker.Tracker`
    reads, is {} where there is none.
    """
    compare(_digests(folder / "meta"))
    meta: Any = ocp.JsonCheckpointHandler().restore(folder / "meta", args=ocp.args.JsonRestore())
    kinds = {"step": int, "kind": str, "config": dict, "extra": dict, "versions": dict}
    if not isinstance(meta, dict) or not all(isinstance(meta.get(name), kind) for name, kind in kinds.items()):
        raise ValueError("meta does not say what it should")
    progress = meta.get("progress")
    meta["progress"] = progress if isinstance(progress, dict) and all(map(_is_sum, progress.values())) else {}
    meta["validation"] = meta["validation"] if isinstance(meta.get("validation"), dict) else {}
    return cast("SavedMeta", meta)


def _is_sum(pair: object) -> bool:
    """Whether it is the sum and the count of a metric."""
    return isinstance(pair, list) and len(pair) == 2 and all(type(number) in (int, float) for number in pair)


def committed_steps(folder: epath.Path) -> set[int]:
    """Return the steps that are saved whole: Orbax renames a temporary folder then; in a bucket it leaves a mark."""
    if not folder.is_dir():
        return set()
    steps = {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit() and entry.is_dir()}
    return {step for step in steps if not is_remote(folder) or (folder / str(step) / _COMMITTED).exists()}


def read_newest(
    folder: epath.Path,
    read: Callable[[epath.Path], T],
    agree: Callable[[bool], list[int]] = lambda readable: [readable],
) -> tuple[T, list[int]] | None:
    """Return what `read` makes of the newest checkpoint that is sound, and the damaged steps that were passed over.

    Args:
        folder: of checkpoints.
        read: from the folder of a step; any Exception but UserError means that it is damaged.
        agree: gathers from all processes whether they could read.

    Returns None where nothing is saved. Raises UserError where no checkpoint can be read.
    """
    problems: dict[int, str] = {}
    for step in sorted(committed_steps(folder), reverse=True):
        problem, found = "", None
        try:
            found = read(folder / str(step))
        except (UserError, MemoryError):
            raise
        except Exception as error:
            problem = first_line(error)
        readable = agree(not problem)
        if found is None or not all(readable):
            problems[step] = problem or f"process {readable.index(0)} could not read it"
            continue
        for bad, problem in problems.items():
            line = f"checkpoint {bad} cannot be read ({problem}); going on from step {step} in {folder}"
            warnings.warn(line, stacklevel=3)
        if not (is_remote(folder) or (folder / str(step) / "meta" / DIGESTS).exists()):
            line = f"checkpoint {step} in {folder} has no digests, since an older version wrote it; it is not checked"
            warnings.warn(line, stacklevel=3)
        return found, list(problems)
    if problems:
        step, problem = next(iter(problems.items()))
        raise UserError(
            f"no checkpoint in {folder} can be read (step {step}: {problem}); "
            "restore the folder from a copy, or choose another workdir"
        )
    return None


def first_line(error: Exception) -> str:
    """Return an error in one line."""
    # tensorstore ends its lines with what the system said, then its own settings in brackets.
    line = (str(error).strip().splitlines() or [""])[0].split(" [tensorstore_spec")[0]
    return f"{type(error).__name__}: {line if len(line) <= 200 else '...' + line[-200:]}"


class _Arrays(ocp.StandardCheckpointHandler):
    """Saves arrays with digests."""

    async def async_save(self, directory, *args, **kwargs) -> list[Future]:
        futures = await super().async_save(directory, *args, **kwargs)
        folder: epath.Path = getattr(directory, "path", directory)
        return [ChainedFuture(futures or [], lambda: _digest_own(folder))]

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        _digest_rest(directory)


class _Json(ocp.JsonCheckpointHandler):
    """Saves JSON with its digest."""

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        _digest_rest(directory)


def _split(state: State) -> dict[str, PyTree]:
    rest = {"step": state.step, "opt_state": state.opt_state, "skipped": state.skipped}
    return {"params": state.params, "ema": state.ema, "state": rest}


def _restore(item: epath.Path, abstract: PyTree) -> PyTree:
    with compared(_share(_digests(item))):
        # Not by the manager: one process that cannot read must not leave the others waiting.
        return ocp.StandardCheckpointHandler().restore(item, args=ocp.args.StandardRestore(abstract))


def _digest_own(item: epath.Path) -> None:
    """Digest the files that this process wrote."""
    process = jax.process_index()
    own = item / _OWN_FILES.format(process)
    if not is_remote(item) and own.is_dir():
        _write_digests(item, _OWN_DIGESTS.format(process), _files(Path(own)))


def _digest_rest(item: epath.Path) -> None:
    """Digest the files that no process has digested; called by one process, when all of them have written."""
    if not is_remote(item):
        folder = Path(item)
        own = tuple(folder / path.name for path in folder.glob(_OWN_FILES.format("*")))
        rest = [path for path in _files(folder) if not any(path.is_relative_to(other) for other in own)]
        _write_digests(item, DIGESTS, rest)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_digests(item: epath.Path, name: str, files: list[Path]) -> None:
    digests = {path.relative_to(item).as_posix(): file_digest(path) for path in files}
    (Path(item) / name).write_text(json.dumps(digests, indent=1), "utf-8")


def _digests(item: epath.Path) -> dict[Path, str]:
    """Return what is known about the files of an item."""
    if is_remote(item) or not (item / DIGESTS).exists():
        return {}
    folder = Path(item)
    known = json.loads((folder / DIGESTS).read_text("utf-8"))
    for name in [name for name in known if name.startswith("digests.")]:
        known |= json.loads((folder / name).read_text("utf-8"))
    return {folder / name: digest for name, digest in known.items()}


def _share(known: dict[Path, str]) -> dict[Path, str]:
    """Return what this process compares where all of them read an item."""
    return dict(sorted(known.items())[jax.process_index() :: jax.process_count()])
