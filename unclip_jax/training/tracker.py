"""Which evaluation of a run was the best, and when its held-out and its training examples part."""

import dataclasses
from collections.abc import Mapping

from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import JsonDict
from unclip_jax.stages.stage import Stage
from unclip_jax.training.workdir import open_folder

HELD_OUT, TRAINING = "held_out", "train_eval"
"""What an evaluation measures; also the prefixes of its metrics."""

Scores = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Judged:
    """What a tracker remembers, JSON in and out."""

    what: str = ""
    last_step: int = 0
    best_step: int | None = None
    best: float = 0.0
    lowest_step: int | None = None
    lowest: float = 0.0
    training_then: float = 0.0
    worse: int = 0
    parted: bool = False
    memorised: bool = False


class Tracker:
    """Remembers which evaluation was the best, and sees when held-out and training examples part.

    Its memory is in every checkpoint, so that a run that carries on says and keeps what it would have.

    Args:
        what: says what is evaluated, in words that change with it.
        count: examples of either kind.
        patience: evaluations after which a rise is no chance.
        saved: the memory in the checkpoint that the run carries on from, {} for none.
    """

    def __init__(self, stage: Stage, what: str, count: int, patience: int, saved: JsonDict):
        self._stage, self._count, self._patience = stage, count, patience
        self._name, self._more_is_better = stage.judged_by
        self._now = _Judged(what=f"{self._name} of {what}")
        try:
            before = from_json(_Judged, saved)
        except UserError:
            return
        # The best of other examples is no measure for these.
        if before.what == self._now.what:
            self._now = before

    @property
    def best_step(self) -> int | None:
        """The step whose weights were the best so far."""
        return self._now.best_step

    @property
    def last_step(self) -> int:
        """The newest step that was evaluated; 0 before the first."""
        return self._now.last_step

    def to_json(self) -> JsonDict:
        """Return its memory."""
        found = to_json(self._now)
        assert isinstance(found, dict)
        return found

    def add(self, step: int, scores: Mapping[str, Scores]) -> list[str]:
        """Take an evaluation, and return lines that a person should read, each said once until it is true anew:

        for `patience` evaluations in a row the held-out loss has been above its lowest, while that of training examples
        is below what it was then; and what `Stage.memorised` says.
        """
        now, lines = dataclasses.replace(self._now, last_step=step), []
        held_out, training = scores[HELD_OUT], scores[TRAINING]
        if self._name in held_out:
            value = held_out[self._name]
            better = value > now.best if self._more_is_better else value < now.best
            if now.best_step is None or better:
                now = dataclasses.replace(now, best_step=step, best=value)
        if "loss" in held_out and "loss" in training:
            loss, own = held_out["loss"], training["loss"]
            if now.lowest_step is None or loss < now.lowest:
                now = dataclasses.replace(now, lowest_step=step, lowest=loss, training_then=own, worse=0, parted=False)
            else:
                now = dataclasses.replace(now, worse=now.worse + 1 if own < now.training_then else 0)
                if now.worse >= self._patience and not now.parted:
                    now = dataclasses.replace(now, parted=True)
                    lines.append(_parted(now, loss, own))
        line = self._stage.memorised(training, held_out, self._count)
        if line is not None and not now.memorised:
            lines.append(line)
        self._now = dataclasses.replace(now, memorised=line is not None)
        return lines


def _parted(now: _Judged, loss: float, own: float) -> str:
    return (
        f"held-out and training examples part: since step {now.lowest_step} the held-out loss has risen from "
        f"{now.lowest:.4g} to {loss:.4g}, while that of training examples fell from {now.training_then:.4g} to "
        f"{own:.4g}: what is learnt now is these examples alone; stop here and use the checkpoint of step "
        f"{now.best_step}, which is kept as the best, or train on more pictures, with more --optim.weight-decay, or on "
        "a smaller network"
    )


def best_step(saved: JsonDict, where: str) -> int:
    """Return the best step by what a checkpoint remembers; UserError for a run that held nothing out."""
    try:
        found = from_json(_Judged, saved).best_step
    except UserError:
        found = None
    if found is None:
        raise UserError(
            f"the run in {open_folder(where)} has not been evaluated on held-out examples, so none of its checkpoints "
            "is known as the best; take the newest, or train with --validation.share 0.02"
        )
    return found
