"""The tables of diffusers' `UnCLIPScheduler`, which computes them in float32.

With float32 arithmetic throughout, in that class's order of operations,

(1)  beta = betas[t] where a step is one training step, else 1 - alpha_bar / alpha_bar_prev;  alpha = 1 - beta
(2)  posterior_x_0 = sqrt(alpha_bar_prev) beta / (1 - alpha_bar),  posterior_x_t = sqrt(alpha) (1 - alpha_bar_prev) /
     (1 - alpha_bar),  posterior_variance = (1 - alpha_bar_prev) / (1 - alpha_bar) beta, at least 1e-20

Two roundings are larger than they look. In the first step of a strided schedule beta rounds to 1, so that x_t counts
for nothing (1e-4 in float64); and in the last one posterior_x_0 is 0.99947 instead of 1, which scales the result.
`Schedule` has neither. Use this one to be compared with diffusers number for number, and for nothing else.
"""

import dataclasses
import functools

import jax
import numpy as np
from jaxtyping import Float64

from unclip_jax.diffusion.gaussian import ProcessSpec, VariancePreserving
from unclip_jax.diffusion.process import Spacing, check_steps
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.systems.system import System

SMALLEST_VARIANCE = np.float32(1e-20)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RoundedSchedule(Schedule):
    """`Schedule` with the tables of equations (1) and (2); each holds float32 values in float64.

    Attributes:
        training_beta: betas[t] of each row's training step.
    """

    training_beta: Float64[np.ndarray, " t"]

    @classmethod
    def of(cls, schedule: Schedule) -> "RoundedSchedule":
        """Return the rounded form of a schedule that has not been respaced."""
        beta = schedule.beta.astype(np.float32)
        # torch.cumprod multiplies in float64 and rounds each result.
        alpha_bar = np.cumprod((np.float32(1) - beta).astype(np.float64)).astype(np.float32)
        return cls(
            alpha_bar=alpha_bar.astype(np.float64),
            timesteps=schedule.timesteps,
            training_beta=beta.astype(np.float64),
        )

    def respace(self, num_steps: int, spacing: Spacing = "linspace") -> "RoundedSchedule":
        """As `Schedule.respace`, with the one spacing that `UnCLIPScheduler` knows."""
        check_steps(num_steps)
        if spacing != "linspace":
            raise ValueError(f"UnCLIPScheduler's spacing is linspace; got {spacing!r}")
        rows = np.searchsorted(self.timesteps, super().respace(num_steps).timesteps)
        return RoundedSchedule(
            alpha_bar=self.alpha_bar[rows],
            timesteps=self.timesteps[rows],
            training_beta=self.training_beta[rows],
        )

    @functools.cached_property
    def _content(self) -> tuple[bytes, bytes]:
        return b"rounded" + self.alpha_bar.tobytes(), self.timesteps.tobytes()

    @functools.cached_property
    def _float32(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """alpha_bar, alpha_bar_prev and beta of equation (1)."""
        alpha_bar, previous = self.alpha_bar.astype(np.float32), self.alpha_bar_prev.astype(np.float32)
        adjacent = self.timesteps == np.append(-1, self.timesteps[:-1]) + 1
        beta = np.where(adjacent, self.training_beta.astype(np.float32), np.float32(1) - alpha_bar / previous)
        return alpha_bar, previous, beta.astype(np.float32)

    @functools.cached_property
    def beta(self) -> Float64[np.ndarray, " t"]:
        return self._float32[2].astype(np.float64)

    @functools.cached_property
    def posterior_variance(self) -> Float64[np.ndarray, " t"]:
        alpha_bar, previous, beta = self._float32
        return ((1 - previous) / (1 - alpha_bar) * beta).astype(np.float64)

    @functools.cached_property
    def posterior_log_variance(self) -> Float64[np.ndarray, " t"]:
        return np.log(np.maximum(self.posterior_variance.astype(np.float32), SMALLEST_VARIANCE)).astype(np.float64)

    @functools.cached_property
    def posterior_x_0(self) -> Float64[np.ndarray, " t"]:
        alpha_bar, previous, beta = self._float32
        return (np.sqrt(previous) * beta / (1 - alpha_bar)).astype(np.float64)

    @functools.cached_property
    def posterior_x_t(self) -> Float64[np.ndarray, " t"]:
        alpha_bar, previous, beta = self._float32
        return (np.sqrt(np.float32(1) - beta) * (1 - previous) / (1 - alpha_bar)).astype(np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundedSpec(ProcessSpec):
    """A cosine `ProcessSpec` whose process samples with the tables of `RoundedSchedule`."""

    def __post_init__(self):
        super().__post_init__()
        if self.schedule != "cosine" or self.zero_terminal_snr:
            raise ValueError("UnCLIPScheduler's schedule is the cosine one, as it is")

    @classmethod
    def of(cls, spec: ProcessSpec) -> "RoundedSpec":
        """Return the rounded form of a spec."""
        return cls(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)})

    def build(self) -> VariancePreserving:
        process = super().build()
        return dataclasses.replace(process, schedule=RoundedSchedule.of(process.schedule))


def rounded(system: System) -> System:
    """Return the system with `RoundedSpec` for the process of every stage."""
    processes = {name: RoundedSpec.of(system.stage(name).process) for name in system.stages}
    stages = {name: dataclasses.replace(system.stage(name), process=process) for name, process in processes.items()}
    return dataclasses.replace(system, stages=stages)
