"""What every training run has in common: the optimiser (paper, table 3), the run itself, and what it is judged by."""

import dataclasses
from typing import Literal

from unclip_jax.core.errors import UserError
from unclip_jax.parallel.distributed import ClusterSpec
from unclip_jax.parallel.mesh import MeshSpec
from unclip_jax.parallel.step import Backend


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise UserError(problem)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, Muon or Adafactor with warm-up, gradient clipping and an exponential moving average of the parameters."""

    optimizer: Literal["adamw", "muon", "adafactor"] = "adamw"
    """The optimiser of kernels; with Muon, Adam updates the rest. Adafactor has no use for beta1, beta2 and eps."""
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    """Precision of the optimiser's moments between steps: Adam's are 8, 4 or about 2 bytes for each parameter."""
    learning_rate: float = 1.2e-4
    """The rate after the warm-up."""
    adam_rate: float = 1.0
    """With Muon, the rate of norms, biases and embeddings as a multiple of learning_rate."""
    warmup_steps: int = 1000
    """Steps over which the rate rises linearly from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The rate after the warm-up: constant, or a cosine that reaches 0 at the last step of the run."""
    beta1: float = 0.9
    """Decay of the first moment, Muon's momentum included, for which 0.95 is usual."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment, and to the norm that Muon divides by."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the kernels; norms, biases and embeddings are left alone."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; None leaves it as it is."""
    ema_decay: float = 0.9999
    """Decay of the averaged parameters that sampling uses; warms up as (1 + step) / (10 + step)."""
    accumulate: int = 1
    """Microbatches that a step splits the batch into, to save memory; the update is the whole batch's."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do about a step whose loss or gradient is not finite; it never changes the parameters."""
    max_skips: int = 10
    """With "skip", stop after this many skipped steps in a row."""

    def __post_init__(self):
        _require(self.learning_rate >= 0, f"learning_rate is {self.learning_rate}; it must be 0 or more")
        _require(self.adam_rate > 0, f"adam_rate is {self.adam_rate}; it must be above 0")
        _require(
            self.optimizer == "muon" or self.adam_rate == 1,
            f"adam_rate is {self.adam_rate}; with {self.optimizer} there is one rate for all, set learning_rate",
        )
        _require(
            self.optimizer != "adafactor" or self.moments == "float32",
            f"moments is {self.moments}; adafactor has next to none to keep, leave it at float32",
        )
        _require(self.warmup_steps >= 0, f"warmup_steps is {self.warmup_steps}; it must be 0 or more")
        for name in ("beta1", "beta2", "ema_decay"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{name} is {value}; it must be at least 0 and below 1")
        _require(self.eps > 0, f"eps is {self.eps}; it must be above 0")
        _require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; it must be 0 or more")
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            f"clip_norm is {self.clip_norm}; it must be above 0, or None for no clipping",
        )
        _require(self.accumulate >= 1, f"accumulate is {self.accumulate}; it must be 1 or more")
        _require(self.max_skips >= 1, f"max_skips is {self.max_skips}; it must be 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run: its folder, its length, and what it saves."""

    workdir: str
    """Folder of the run, shared by all hosts, or gs://bucket/folder. A run that finds its checkpoints there resumes."""
    steps: int
    """Optimiser steps of the whole run."""
    seed: int = 0
    """Seeds the initial parameters and, folded with the step and the row, all randomness."""
    log_every: int = 100
    """Steps that one line of metrics averages over."""
    save_every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    sample_every: int = 0
    """Steps between preview images; 0 makes none."""
    keep: int = 3
    """Newest checkpoints to keep."""
    keep_period: int | None = None
    """Keep the checkpoints of all steps that this divides as well, for ever."""
    mesh: MeshSpec = MeshSpec()
    """The device mesh."""
    cluster: ClusterSpec = ClusterSpec()
    """The cluster, where it is not detected."""
    hang_timeout: int = 600
    """Seconds without a finished step after which the process ends, with status 75, to be started again; 0 never."""
    backend: Backend = "jit"
    """What compiles the step: jit, on any mesh, or pmap, in one process with whole copies; the numbers are the same."""
    tensorboard: bool = True
    """Also write the metrics and previews for TensorBoard, if tensorboardX is installed."""
    profile: int = 0
    """Steps to trace for xprof into workdir/profile, after the first ten of this process; 0 traces none."""
    take_over: bool = False
    """Take the run from another process that is training it, which then stops without saving."""

    wandb: str = ""
    """Also write the metrics and previews to this project of Weights & Biases (the package wandb); "" for none."""

    def __post_init__(self):
        _require(bool(self.workdir), "workdir is empty; name a folder for the run")
        for name in ("steps", "log_every", "save_every", "keep"):
            value = getattr(self, name)
            _require(value >= 1, f"{name} is {value}; it must be 1 or more")
        for name in ("sample_every", "hang_timeout", "profile"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} is {value}; it must be 0 (none) or more")
        _require(
            self.keep_period is None or self.keep_period >= 1,
            f"keep_period is {self.keep_period}; it must be 1 or more, or None",
        )
        _require(0 <= self.seed < 2**32, f"seed is {self.seed}; it must be at least 0 and below 2**32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Examples that are held out, and measured while a run trains. With none of share, split and source there are
    none."""

    share: float = 0.0
    """Share of the records to hold out, by a hash of their keys: never trained on, and the same for every stage."""
    split: str = ""
    """Or a split of the data to measure, such as "test"; see --data.split."""
    source: str = ""
    """Or another source to measure; see --data.source."""
    every: int = 0
    """Steps between evaluations; 0 is as often as checkpoints. The last step is always evaluated."""
    examples: int = 512
    """Held-out examples that are measured, and as many of the training ones; fewer where fewer are held out."""
    patience: int = 3
    """Evaluations in a row, with a worse held-out loss than before while that of training falls, that bring a line."""

    metric: str = ""
    """A function that judges sampled images, "package.module:function"; unclip_jax.eval.shapes.cases:read_captions is
    one. For stages that write images."""
    sampled: int = 64
    """Held-out and training examples that are sampled for it."""

    def __post_init__(self):
        _require(0 <= self.share < 1, f"validation.share is {self.share}; it must be at least 0 and below 1")
        given = [f"--validation.{name}" for name in ("share", "split", "source") if getattr(self, name)]
        advice = "set --validation.share 0, or leave out the other" if self.share else "leave out the other"
        _require(len(given) < 2, f"{' and '.join(given)} are given; one says what is held out, {advice}")
        _require(self.every >= 0, f"validation.every is {self.every}; it must be 0 (as checkpoints) or more")
        for name in ("examples", "patience", "sampled"):
            value = getattr(self, name)
            _require(value >= 1, f"validation.{name} is {value}; it must be 1 or more")

    @property
    def wanted(self) -> bool:
        """Whether anything is held out."""
        return bool(self.share or self.split or self.source)
