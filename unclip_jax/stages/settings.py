"""Sampling settings of one stage: proposed by a recipe, stored in a bundle, changed by a request."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

from unclip_jax.core.errors import UserError
from unclip_jax.diffusion import (
    DDIM,
    DDPM,
    AnalyticDPM,
    AnyProcessSpec,
    DPMSolver,
    Guidance,
    Heun,
    ModelFn,
    Process,
    Sampler,
    Spacing,
    Threshold,
    X0Variance,
)

MAX_STEPS = 10_000
"""Of a process whose rows are not counted."""
SamplerName = Literal["ddim", "ddpm", "dpm++", "sde_dpm++", "analytic", "heun"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Sampling settings of one stage."""

    REMOVED: ClassVar[dict[str, Any]] = {"parity": False}

    sampler: SamplerName = "ddim"
    """DDIM (Euler's method for EDM and flows); ancestral sampling with the variance of the network's process (ddpm) or
    with the optimal one (analytic), from the bundle's statistics; for few steps second-order DPM-Solver++ (dpm++), its
    stochastic form (sde_dpm++) and Heun's method (heun)."""
    steps: int = 50
    """Steps between noise levels, one network evaluation each; heun makes 2 steps - 1 evaluations."""
    spacing: Spacing = "linspace"
    """How steps are spread over the noise levels: see `Schedule.respace`, `EDM.respace` and `Flow.respace`."""
    eta: float = 0.0
    """DDIM noise level: 0 is deterministic, 1 as stochastic as DDPM."""
    guidance_scale: float = 1.0
    """Classifier-free guidance scale; 1 disables guidance."""
    guidance_rescale: float = 0.0
    """How far the standard deviation of guided predictions is restored to that of conditional ones, in [0, 1]."""
    guidance_interval: tuple[int | float, int | float] | None = None
    """Lowest and highest time that is guided, in the units that the network is conditioned on; all if not given."""
    threshold: Literal["none", "static", "dynamic"] = "static"
    """Thresholding of the predicted clean image (or, with a limit, embedding) in each step."""
    limit: float | None = None
    """Range of thresholding, from -limit to limit: 1 for images and none for embeddings if not given."""
    num_candidates: int = 1
    """Embeddings sampled per image, of which the one nearest to the caption is kept (prior only)."""
    percentile: float = 0.995
    """Quantile of magnitudes that dynamic thresholding scales to the limit."""

    def check(self, name: str, process: AnyProcessSpec) -> None:
        """Raise UserError, whose message begins with `name`, for a value out of range or not for such a process."""
        most = MAX_STEPS if process.max_steps is None else process.max_steps
        if not 1 <= self.steps <= most:
            raise UserError(f"{name}: steps is {self.steps}; choose 1 to {most}")
        if not (math.isfinite(self.guidance_scale) and 0 <= self.guidance_scale <= 100):
            raise UserError(f"{name}: guidance_scale is {self.guidance_scale}; choose 0 to 100, 1 for no guidance")
        for field in ("eta", "guidance_rescale"):
            value = getattr(self, field)
            if not 0 <= value <= 1:
                raise UserError(f"{name}: {field} is {value}; choose 0 to 1")
        if self.eta and self.sampler not in ("ddim", "ddpm"):
            raise UserError(f"{name}: eta is {self.eta}, which {self.sampler} has not; set it to 0, or sampler to ddim")
        if self.limit is not None and not (math.isfinite(self.limit) and self.limit > 0):
            raise UserError(f"{name}: limit is {self.limit}; it must be above 0")
        if not 0 < self.percentile <= 1:
            raise UserError(f"{name}: percentile is {self.percentile}; choose above 0 to 1")
        if not 1 <= self.num_candidates <= 64:
            raise UserError(f"{name}: num_candidates is {self.num_candidates}; choose 1 to 64")
        if self.sampler in ("ddpm", "analytic") and process.max_steps is None:
            found = f"{name}: sampler {self.sampler} is for discrete processes, not for {process.describe()}"
            raise UserError(f"{found}; set sampler to ddim, with eta 1 for its noise")
        if self.spacing not in process.spacings:
            found = f"{name}: {process.describe()} has no {self.spacing} spacing"
            raise UserError(f"{found}; choose among {', '.join(process.spacings)}")
        self._check_interval(name, process)

    def _check_interval(self, name: str, process: AnyProcessSpec) -> None:
        if self.guidance_interval is None:
            return
        lowest, highest = self.guidance_interval
        first, last = process.times
        if not first <= lowest <= highest <= last:
            found = f"{name}: guidance_interval is {lowest} to {highest}"
            raise UserError(f"{found}; choose two times of {first:.4g} to {last:.4g}, the lower one first")

    def build_sampler(self, x0_variance: X0Variance | None = None) -> Sampler:
        """Build the sampler.

        Args:
            x0_variance: the network's statistics, which analytic needs; where `limit` is given, it bounds them.

        Raises:
            UserError: analytic without statistics.
        """
        match self.sampler:
            case "ddim":
                return DDIM(steps=self.steps, eta=self.eta)
            case "ddpm":
                return DDPM(steps=self.steps)
            case "dpm++":
                return DPMSolver(steps=self.steps)
            case "sde_dpm++":
                return DPMSolver(steps=self.steps, kind="sde")
            case "heun":
                return Heun(steps=self.steps)
            case "analytic":
                if x0_variance is None:
                    make = "python -m train.measure BUNDLE --data FOLDER"
                    raise UserError(f"sampler analytic needs the network's statistics, which are missing; run {make}")
                data_range = None if self.limit is None else (-self.limit, self.limit)
                return AnalyticDPM(steps=self.steps, x0_variance=x0_variance, data_range=data_range)

    def build_process(self, process: AnyProcessSpec) -> Process:
        """Build the process on the rows that are sampled.

        Raises:
            ValueError: as `Process.respace`.
        """
        return process.build().respace(self.steps, self.spacing)

    def build_threshold(self, limit: float | None) -> Threshold:
        """Build the threshold; `limit` stands in where these settings name none, and None is no bound at all."""
        bound = limit if self.limit is None else self.limit
        if bound is None:
            return Threshold(kind="none")
        return Threshold(kind=self.threshold, limit=bound, percentile=self.percentile)

    def guided(self, process: AnyProcessSpec, model_fn: ModelFn) -> ModelFn:
        """Return `model_fn` with guidance, as `Guidance.wrap`."""
        scale, rescale, interval = self.guidance_scale, self.guidance_rescale, self.guidance_interval
        return Guidance(scale=scale, rescale=rescale, interval=interval).wrap(self.build_process(process), model_fn)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What selects the program that samples a stage."""

    settings: SamplingSettings
    without: tuple[str, ...] = ()
    """Conditions, by their tag, that the network is to do without, as on guidance's other side."""
