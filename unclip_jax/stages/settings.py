"""How one stage of a cascade is sampled: what a recipe proposes, a bundle stores and a request may change."""

import dataclasses
import math
from typing import Literal

from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.gaussian import Process, ProcessSpec
from unclip_jax.diffusion.guidance import Guidance, ModelFn, Threshold
from unclip_jax.diffusion.rounded import RoundedSchedule
from unclip_jax.diffusion.samplers import DDIM, DDPM, Analytic, DPMSolver, Sampler, X0Variance
from unclip_jax.diffusion.schedule import Spacing

SamplerName = Literal["ddim", "ddpm", "dpm++", "sde_dpm++", "analytic"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How one stage is sampled."""

    sampler: SamplerName = "ddim"
    """DDIM; ancestral sampling (ddpm) with the variance of the network's process, or with the best one (analytic), from
    the bundle's statistics; DPM-Solver++ (dpm++) and its stochastic form (sde_dpm++), for few steps."""
    steps: int = 50
    """Network evaluations."""
    spacing: Spacing = "linspace"
    """Which training steps they fall on, or in between (karras): see `Schedule.respace`."""
    eta: float = 0.0
    """DDIM's noise: 0 is deterministic, 1 as noisy as DDPM."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is none."""
    guidance_rescale: float = 0.0
    """How far guided predictions are brought back to the deviation of unguided ones, in [0, 1]."""
    guidance_interval: tuple[int, int] | None = None
    """Training steps, lowest and highest, between which predictions are guided; all where it is not given."""
    threshold: Literal["none", "static", "dynamic"] = "static"
    """How each step's prediction of the clean image (or, with a limit, embedding) is kept in range."""
    limit: float | None = None
    """The range that is kept, from -limit to limit: 1 for images and none for embeddings where it is not given."""
    parity: bool = False
    """Float32 tables as in diffusers' UnCLIPScheduler, roundings and all, to compare with it (ddpm, cosine)."""
    num_candidates: int = 1
    """Embeddings drawn per image, of which the one nearest to the caption is kept (prior only)."""

    def check(self, name: str, process: ProcessSpec) -> None:
        """Raises UserError for a value out of range."""
        if not 1 <= self.steps <= process.num_steps:
            raise UserError(f"{name}: steps is {self.steps}; choose 1 to {process.num_steps}")
        if not (math.isfinite(self.guidance_scale) and 0 <= self.guidance_scale <= 100):
            raise UserError(f"{name}: guidance_scale is {self.guidance_scale}; choose 0 to 100, 1 for no guidance")
        for field in ("eta", "guidance_rescale"):
            value = getattr(self, field)
            if not 0 <= value <= 1:
                raise UserError(f"{name}: {field} is {value}; choose 0 to 1")
        if self.eta and self.sampler not in ("ddim", "ddpm"):
            raise UserError(f"{name}: eta is {self.eta}, which {self.sampler} has not; set it to 0, or sampler to ddim")
        if self.spacing == "karras" and process.zero_terminal_snr:
            raise UserError(f"{name}: karras spacing has no end where the SNR is 0; set spacing to trailing")
        if self.guidance_interval is not None:
            lowest, highest = self.guidance_interval
            if not 0 <= lowest <= highest < process.num_steps:
                found = f"{name}: guidance_interval is {lowest} to {highest}"
                raise UserError(f"{found}; choose two steps of 0 to {process.num_steps - 1}, the lower one first")
        if self.limit is not None and not (math.isfinite(self.limit) and self.limit > 0):
            raise UserError(f"{name}: limit is {self.limit}; it must be above 0")
        if self.parity and (self.sampler != "ddpm" or process.schedule != "cosine" or process.zero_terminal_snr):
            raise UserError(f"{name}: parity is with a ddpm sampler on a cosine schedule; set sampler to ddpm")
        if self.parity and self.spacing != "linspace":
            raise UserError(f"{name}: parity is with linspace spacing; set spacing to it, not to {self.spacing}")
        if not 1 <= self.num_candidates <= 64:
            raise UserError(f"{name}: num_candidates is {self.num_candidates}; choose 1 to 64")

    def algorithm(self, x0_variance: X0Variance | None = None) -> Sampler:
        """The sampler itself.

        Args:
            x0_variance: the network's statistics, which analytic needs; where `limit` is given, it bounds them.

        Raises:
            UserError: analytic is to do without.
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
            case "analytic":
                if x0_variance is None:
                    make = "python -m unclip_jax.eval.statistics BUNDLE --data FOLDER"
                    raise UserError(f"sampler analytic needs the network's statistics, which are missing; run {make}")
                data_range = None if self.limit is None else (-self.limit, self.limit)
                return Analytic(steps=self.steps, x0_variance=x0_variance, data_range=data_range)

    def build(self, process: ProcessSpec) -> Process:
        """The process on the rows that are sampled, with diffusers' tables if these settings ask for them."""
        built = process.build()
        if self.parity:
            built = dataclasses.replace(built, schedule=RoundedSchedule.of(built.schedule))
        return built.respace(self.steps, self.spacing)

    def clip(self, limit: float | None) -> Threshold:
        """The threshold, with `limit` where these settings name none; None for no bound at all."""
        bound = limit if self.limit is None else self.limit
        return Threshold(kind="none") if bound is None else Threshold(kind=self.threshold, limit=bound)

    def guide(self, process: ProcessSpec, model_fn: ModelFn) -> ModelFn:
        """`model_fn` with guidance."""
        scale, rescale, interval = self.guidance_scale, self.guidance_rescale, self.guidance_interval
        guidance = Guidance(scale=scale, rescale=rescale, interval=interval)
        return guidance.wrap(self.build(process), model_fn)
