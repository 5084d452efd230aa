"""How one stage of a cascade is sampled: what a recipe proposes, a bundle stores and a request may change."""

import dataclasses
import math
from typing import Literal

from unclip_jax.diffusion.gaussian import Process, ProcessSpec
from unclip_jax.diffusion.guidance import Guidance, ModelFn, Threshold
from unclip_jax.diffusion.rounded import RoundedSchedule
from unclip_jax.diffusion.samplers import DDIM, DDPM
from unclip_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How one stage is sampled."""

    sampler: Literal["ddim", "ddpm"] = "ddim"
    """DDIM, or ancestral sampling with the variance of the network's process."""
    steps: int = 50
    """Network evaluations."""
    eta: float = 0.0
    """DDIM's noise: 0 is deterministic, 1 as noisy as DDPM."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is none."""
    guidance_rescale: float = 0.0
    """How far guided predictions are brought back to the deviation of unguided ones, in [0, 1]."""
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
        if self.limit is not None and not (math.isfinite(self.limit) and self.limit > 0):
            raise UserError(f"{name}: limit is {self.limit}; it must be above 0")
        if self.parity and (self.sampler != "ddpm" or process.schedule != "cosine"):
            raise UserError(f"{name}: parity is with a ddpm sampler on a cosine schedule; set sampler to ddpm")
        if not 1 <= self.num_candidates <= 64:
            raise UserError(f"{name}: num_candidates is {self.num_candidates}; choose 1 to 64")

    def algorithm(self) -> DDIM | DDPM:
        """The sampler itself."""
        return DDIM(steps=self.steps, eta=self.eta) if self.sampler == "ddim" else DDPM(steps=self.steps)

    def build(self, process: ProcessSpec) -> Process:
        """The process, with diffusers' tables if these settings ask for them."""
        built = process.build()
        return dataclasses.replace(built, schedule=RoundedSchedule.of(built.schedule)) if self.parity else built

    def clip(self, limit: float | None) -> Threshold:
        """The threshold, with `limit` where these settings name none; None for no bound at all."""
        bound = limit if self.limit is None else self.limit
        return Threshold(kind="none") if bound is None else Threshold(kind=self.threshold, limit=bound)

    def guide(self, process: ProcessSpec, model_fn: ModelFn) -> ModelFn:
        """`model_fn` with guidance."""
        guidance = Guidance(scale=self.guidance_scale, rescale=self.guidance_rescale)
        return guidance.wrap(self.build(process), model_fn)
