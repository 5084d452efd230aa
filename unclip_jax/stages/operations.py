"""Operations on a diffusion stage besides sampling: each a pure function that `unclip_jax.stages.compiled` compiles.

    (stage, options, weights, rows, noise) -> array [b ...]          as `Stage.sample` is one

`options` are hashable and select the program, `rows` are named arrays [b ...] of which any may be None.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.noise import NoiseSource
from unclip_jax.diffusion.samplers import DDIM, squared_errors
from unclip_jax.diffusion.samplers.repaint import Resampling, repaint
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.encoders import Arrays
from unclip_jax.stages.settings import Options
from unclip_jax.stages.stage import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepaintOptions(Options):
    """Options of inpainting."""

    resampling: Resampling | None
    """How often steps are repeated; None leaves it to a network that was trained for inpainting."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvertOptions(Options):
    """Options of inversion."""

    corrections: int
    """Network evaluations of each step beyond the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorOptions(Options):
    """Options of measuring the errors of a network."""

    levels: tuple[int, ...]
    """Rows of the process's schedule."""


def repaint_stage(
    stage: DiffusionStage, options: RepaintOptions, weights: Weights, rows: Arrays, noise: NoiseSource
) -> Float[Array, "b h w 3"]:
    """Sample images that keep `known_image` [b h w 3] where `mask_to_fill` [b h w] is False."""
    known, mask = rows["known_image"], rows["mask_to_fill"][..., None]
    if options.resampling is None:
        return jnp.where(mask, stage.sample(options, weights, rows, noise), known)
    problem = stage.problem(options, weights, rows)
    return repaint(
        problem.process,
        problem.model_fn,
        problem.cond,
        problem.sampler,
        noise,
        known=known,
        is_known=~mask,
        resampling=options.resampling,
        threshold=problem.threshold,
    )


def invert_stage(
    stage: DiffusionStage, options: InvertOptions, weights: Weights, rows: Arrays, noise: None
) -> Float[Array, "b h w 3"]:
    """Find x_T of the images `known_image` [b h w 3]."""
    del noise
    problem = stage.problem(options, weights, {name: value for name, value in rows.items() if name != "known_image"})
    assert isinstance(problem.sampler, DDIM), "only DDIM is inverted"
    return samplers.invert(
        problem.process,
        problem.model_fn,
        problem.cond,
        problem.sampler,
        rows["known_image"],
        corrections=options.corrections,
        threshold=problem.threshold,
    )


def errors_of_stage(
    stage: DiffusionStage, options: ErrorOptions, weights: Weights, rows: Arrays, noise: NoiseSource
) -> Float[Array, "b s"]:
    """Measure mean square errors of the network's x_0 at noise levels, for training rows that hold what it writes."""
    frozen: Any = weights.frozen
    x_0 = stage.space.normalise(stage.space.target(stage.writes, frozen, rows), frozen)
    cond = stage.condition(weights, rows, len(x_0))
    errors = squared_errors(
        stage.process.build(),
        stage.problem(options, weights, rows).model_fn,
        cond,
        x_0,
        noise,
        np.asarray(options.levels),
        threshold=options.settings.build_threshold(stage.space.limit),
    )
    return errors.T
