"""Checkpoints of a run: Orbax items `state` (arrays) and `meta` (JSON: config, versions and more) per step.

Saving is asynchronous: the arrays are copied to the host, then written while training goes on, and a
checkpoint counts only once its folder has lost its temporary name. A process killed while writing loses only
that one.
"""

import contextlib
import dataclasses
import errno
import fnmatch
import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import preservation_policy

from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import DataclassInstance, Json, JsonDict
from unclip_jax.models.parameters import check_finite, flatten
from unclip_jax.parallel.distributed import from_all, is_lost_peer
from unclip_jax.training.items import (
    SavedMeta,
    committed_steps,
    first_line,
    handlers,
    read_meta,
    read_newest,
    read_state,
    read_tree,
    saved_items,
)
from unclip_jax.training.orbax_quiet import orbax_muted
from unclip_jax.training.state import State
from unclip_jax.training.tracker import best_step
from unclip_jax.training.workdir import is_remote, open_folder

FOLDER = "checkpoints"

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

# What a run may change when it carries on. The rest decides the numbers, so it belongs to the run.
_MAY_CHANGE = (
    "run.workdir", "run.steps", "run.*_every", "run.keep", "run.keep_period", "run.mesh.*", "run.cluster.*",
    "run.hang_timeout", "run.backend", "run.tensorboard", "run.profile", "run.take_over", "run.wandb",
    "validation.split", "validation.source", "validation.every", "validation.examples", "validation.patience",
    "validation.metric", "validation.sampled",
    "optim.learning_rate", "optim.clip_norm", "optim.accumulate", "optim.on_nonfinite", "optim.max_skips",
)  # fmt: skip


_SHARE = "the workdir must be on a file system that all hosts share, or gs://bucket/folder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """What a checkpoint says about itself."""

    kind: str
    """The stage: "clip", "prior", "decoder" or "upsampler"."""
    config: DataclassInstance
    """The whole resolved config of the run, enough to rebuild the model."""
    extra: JsonDict = dataclasses.field(default_factory=dict)
    """What else belongs to the weights, such as the tokenizer, in JSON."""
    may_change: tuple[str, ...] = ()
    """Further config paths (shell patterns, "data.num_workers") that a resumed run may change."""


def versions() -> dict[str, str]:
    """Return the versions that shaped the numbers, for the record."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


class Checkpoints:
    """The checkpoints of one run, under `workdir`/checkpoints; close it when done, it owns threads.

    Every process of the run makes one and calls the same methods at the same steps.
    """

    def __init__(self, workdir: str | Path, *, meta: Meta, keep: int, keep_period: int | None = None):
        """Open or create the folder.

        Raises UserError when it cannot be written, and when it is not one folder that all processes see.
        """
        self._folder = open_folder(workdir) / FOLDER
        self._meta = meta
        _make_shared(self._folder)
        self._best: int | None = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Kept(keep, keep_period, lambda: self._best), cleanup_tmp_directories=True
        )
        self._muted = contextlib.ExitStack()
        self._muted.enter_context(orbax_muted())
        self._manager = ocp.CheckpointManager(self._folder, options=options, handler_registry=handlers())

    def latest_step(self) -> int | None:
        """Return the newest step that is saved whole, or None."""
        return max(committed_steps(self._folder), default=None)

    def reached_preemption(self, step: int) -> bool:
        """Return True, on every process at the same step, once one of several processes has received SIGTERM."""
        return self._manager.reached_preemption(step)

    def keep_best(self, step: int | None) -> None:
        """Keep the checkpoint of a step for as long as no other is named."""
        self._best = step

    def save(
        self, step: int, state: State, progress: dict[str, list[float]], validation: JsonDict | None = None
    ) -> None:
        """Start saving; `progress` (JSON) comes back with `restore`, and `validation` (JSON) in the meta.

        Raises UserError if this save or the one before, which it waits for, could not be written.
        """
        meta: SavedMeta = {
            "step": step, "kind": self._meta.kind, "config": to_json(self._meta.config), "extra": self._meta.extra,
            "progress": progress, "validation": validation or {}, "versions": versions(),
        }  # fmt: skip
        try:
            self._manager.save(step, args=saved_items(state, meta), force=True)
        except Exception as error:
            raise self._save_failed(error) from error

    def wait(self) -> None:
        """Wait until what was saved is on disk; raise UserError if it could not be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_failed(error) from error

    def restore(self, abstract: State) -> tuple[State, dict[str, list[float]]] | None:
        """Restore the newest readable state, laid out as `abstract`, and its progress; None if nothing is saved.

        A newest checkpoint that cannot be read, by whichever process, is warned about and set aside, and the one before
        is taken. Raises UserError when none can be read, and when the checkpoint belongs to another config.
        """
        steps = sorted(committed_steps(self._folder), reverse=True)
        if len({*from_all(hash(tuple(steps)) % 2**31)}) > 1:
            raise UserError(f"the processes see different checkpoints in {self._folder}; {_SHARE}")

        def read(folder: epath.Path) -> tuple[State, dict[str, list[float]]]:
            meta = read_meta(folder)
            self._check_same_run(meta)
            return read_state(folder, abstract), meta["progress"]

        found = read_newest(self._folder, read, from_all)
        if found is None:
            return None
        restored, damaged = found
        for step in damaged:
            self._set_aside(step)
        return restored

    def close(self) -> None:
        """Stop the threads; call `wait` before, to check that the last save succeeded."""
        self._manager.close()
        self._muted.close()

    def _check_same_run(self, meta: SavedMeta) -> None:
        if meta["kind"] != self._meta.kind:
            raise UserError(
                f"{self._folder} holds a {meta['kind']} run, not a {self._meta.kind}; choose another workdir"
            )
        try:
            # A field that is newer than the run has its default.
            started_with = to_json(from_json(type(self._meta.config), meta["config"]))
        except UserError as error:
            raise UserError(
                f"the run in {self._folder} is of a version with other settings ({error}); choose another workdir"
            ) from error
        saved, now = _flatten(started_with), _flatten(to_json(self._meta.config))
        for name in sorted(saved.keys() | now.keys()):
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in _MAY_CHANGE + self._meta.may_change):
                continue
            if saved.get(name) != now.get(name):
                raise UserError(
                    f"{name} is {now.get(name)!r}, but the run in {self._folder} was started with "
                    f"{saved.get(name)!r}; give the same value, or choose another workdir"
                )

    def _set_aside(self, step: int) -> None:
        aside = self._folder.with_name(f"{FOLDER}.unreadable")
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            if (aside / str(step)).exists():
                (aside / str(step)).rmtree()
            (self._folder / str(step)).rename(aside / str(step))
        from_all(step)
        self._manager.reload()

    def _save_failed(self, error: Exception) -> Exception:
        if is_lost_peer(error):
            return error
        last = self.latest_step()
        good = "no checkpoint is saved yet" if last is None else f"the checkpoint of step {last} is whole and usable"
        if _is_disk_full(error):
            return UserError(f"the disk is full, {self._folder} could not take a checkpoint; {good}; free some space")
        return UserError(f"a checkpoint could not be saved in {self._folder}: {first_line(error)}; {good}")


@runtime_checkable
class _Saved(Protocol):
    """What the manager says of a checkpoint."""

    @property
    def step(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class _Kept(preservation_policy.PreservationPolicy):
    """The `newest` checkpoints, those of all steps that `period` divides, and that of the best step."""

    newest: int
    period: int | None
    best: Callable[[], int | None]

    def should_preserve(
        self,
        checkpoints: Sequence[_Saved],
        *,
        context: preservation_policy.PreservationContext,
    ) -> list[bool]:
        del context
        steps = [each.step for each in checkpoints]
        kept = {*sorted(steps)[-self.newest :], self.best()}
        return [step in kept or (self.period is not None and step % self.period == 0) for step in steps]


def load_params(
    path: str | Path, which: Literal["ema", "params"] = "ema", step: int | Literal["best"] | None = None
) -> tuple[PyTree, SavedMeta]:
    """Read parameters alone, for sampling, onto the default device; see `read_params`."""
    tree, meta = read_params(path, which, step)
    return jax.device_put(tree), meta


def read_params(
    path: str | Path, which: Literal["ema", "params"] = "ema", step: int | Literal["best"] | None = None
) -> tuple[PyTree[np.ndarray], SavedMeta]:
    """Read parameters alone, whatever mesh and optimiser they were trained with.

    Args:
        path: the run's workdir, a folder or gs://bucket/folder.
        which: the moving average or the parameters in training.
        step: the newest if None; "best" is the one with the best held-out score (`unclip_jax.training.tracker`).

    Returns:
        Nested dicts of arrays, and the checkpoint's meta.

    Raises:
        UserError: nothing saved there, no such step, none that is known as the best, or not readable.
    """
    folder = open_folder(path) / FOLDER
    steps = committed_steps(folder)
    if not steps:
        there = f"{path} is a file" if open_folder(path).is_file() else f"no checkpoint in {folder}"
        raise UserError(f"{there}; give the workdir of a run that has saved one")
    if step == "best":
        meta = newest_meta(path)
        step = best_step({} if meta is None else meta["validation"], str(path))
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint of step {step} in {folder}; there are {', '.join(map(str, sorted(steps)))}")

    def read(own: epath.Path) -> tuple[PyTree, SavedMeta]:
        meta = read_meta(own)
        tree = read_tree(own, which)
        check_finite(f"{own}, {which}", {name: np.asarray(leaf) for name, leaf in flatten(tree).items()})
        return tree, meta

    with orbax_muted():
        if step is None:
            found = read_newest(folder, read)
            assert found is not None, folder
            (tree, meta), _ = found
        else:
            try:
                tree, meta = read(folder / str(step))
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"checkpoint {step} in {folder} cannot be read: {first_line(error)}") from error
    return tree, meta


def newest_meta(path: str | Path) -> SavedMeta | None:
    """Read the meta of a run's newest readable checkpoint; None where nothing is saved."""
    folder = open_folder(path) / FOLDER
    for step in sorted(committed_steps(folder), reverse=True):
        # One that cannot be read is set aside, with a warning, when the state is restored.
        with contextlib.suppress(Exception):
            return read_meta(folder / str(step))
    return None


def _make_shared(folder: epath.Path) -> None:
    """Make the folder in process 0, and check that every process has access to it."""
    problem = None
    try:
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
        from_all(0)
        there = folder.is_dir()
    except Exception as error:
        # A bucket's client has errors of its own: no package, no credentials, no permission, no such bucket.
        if is_lost_peer(error) or not (isinstance(error, OSError) or is_remote(folder)):
            raise
        problem, there = getattr(error, "strerror", None) or first_line(error), False
    seen = from_all(there)
    if problem is not None:
        raise UserError(f"cannot write checkpoints to {folder}: {problem}; choose another workdir")
    if not all(seen):
        blind = [str(process) for process, sees in enumerate(seen) if not sees]
        raise UserError(f"process {', '.join(blind)} of {len(seen)} cannot see {folder}; {_SHARE}")


def _flatten(config: Json, prefix: str = "") -> JsonDict:
    if not isinstance(config, dict):
        return {prefix: config}
    flat = {}
    for name, value in config.items():
        flat |= _flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat


def _is_disk_full(error: BaseException | None) -> bool:
    numbers = (errno.ENOSPC, errno.EDQUOT)
    while error is not None:
        # tensorstore gives the system's words, not its number.
        if getattr(error, "errno", None) in numbers or any(os.strerror(number) in str(error) for number in numbers):
            return True
        error = error.__cause__ or error.__context__
    return False
