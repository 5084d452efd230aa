"""Statistics of z_i over training data, before a prior trains and for a bundle once it has.

(1) mean, std of every dimension ("whiten"), or 0 and the root of the mean square over all of them ("scale", the paper)
(2) std >= 1e-5 root of the mean square: z_i of one picture, or of its copies, has no deviation that could be divided by
"""

import contextlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from unclip_jax.core.errors import UserError
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.records import Source
from unclip_jax.diffusion.noise import KeyNoise
from unclip_jax.diffusion.samplers import X0Variance
from unclip_jax.editing.embeddings import embed_images
from unclip_jax.images.pixels import to_float
from unclip_jax.parallel.distributed import gather_rows
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.operations import ErrorOptions, errors_of_stage
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems.system import Step, System, program_of
from unclip_jax.training.loop import Batches
from unclip_jax.training.stage_configs import Normalise

STATS_EXAMPLES = 4096
"""A deviation over so many examples is off by 1 % (1 / sqrt(2 n))."""
LEAST_STD = 1e-5
"""Of equation (2); a hundred times what float32 rounds z_i by."""
LEVELS = 50
"""Noise levels at which a network is measured: the statistic is smooth, and interpolated between them."""


def measure_stats(encoder: Encoder, batches_of: Batches, normalise: Normalise) -> EmbeddingStats:
    """Measure equations (1) and (2) over the first examples of a run, those of all hosts; say where (2) was needed.

    Their z_i are those that the batches bring, or the encoder's.

    Raises UserError for embeddings that are all 0 or not finite.
    """
    encode = jax.jit(encoder.clip.encode_image)
    embeddings: list[np.ndarray] = []
    with contextlib.closing(batches_of(0)) as iterator:
        while sum(map(len, embeddings)) < STATS_EXAMPLES:
            batch = next(iterator)
            if "z_i" in batch:
                own = batch["z_i"]
            else:
                pixels = to_float(batch[f"image_{encoder.clip.image_tower.image_size}"])
                own = np.asarray(encode(encoder.params, pixels))
            embeddings.append(gather_rows(own))
    z_i = np.concatenate(embeddings).astype(np.float64)
    scale = np.sqrt(np.mean(z_i**2))
    if not 0 < scale < np.inf:
        raise UserError(f"the CLIP's embeddings of the pictures have the mean square {scale**2:g}; give another --clip")
    if normalise == "scale":
        mean, std = np.zeros(z_i.shape[1]), np.full(z_i.shape[1], scale)
    else:
        mean, std = z_i.mean(0), z_i.std(0)
    least = LEAST_STD * scale
    if (flat := np.sum(std < least)) and jax.process_index() == 0:
        found = f"z_i is the same for all {len(z_i)} examples measured in {flat} of {z_i.shape[1]} dimensions"
        print(f"{found}: their deviation is set to {least:.2g}, and only their mean is learnt", file=sys.stderr)
    std = np.maximum(std, least)
    return EmbeddingStats(mean=jnp.asarray(mean, jnp.float32), std=jnp.asarray(std, jnp.float32))


def normalisation(stats: EmbeddingStats) -> Normalise:
    """Return by which form of equation (1) statistics were measured."""
    mean, std = np.asarray(stats.mean), np.asarray(stats.std)
    return "scale" if not mean.any() and (std == std[0]).all() else "whiten"


def measure_system(
    system: System,
    source: Source,
    *,
    num_examples: int,
    batch_size: int,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Float[np.ndarray, "n d"], dict[str, X0Variance]]:
    """Measure z_i of the examples, and by stage the errors of what samples embeddings (`samplers.analytic`, equation
    3).

    Args:
        seed: of the order and the noise.
        report: called with a line of progress.

    Raises:
        UserError: the bundle has no tokenizer, or its CLIP no image tower.
    """
    if system.tokenizer is None:
        raise UserError(f"bundle {system.name} has no tokenizer; use one that reads captions")
    clip = system.encoder("clip").clip
    size, context = clip.image_tower.image_size, clip.text_tower.context
    wanted = BatchSpec(batch_size=batch_size, sizes=(size,), context=context, seed=seed)
    names = [name for name in system.stages if _is_measured(system.stage(name))]
    embeddings: list[np.ndarray] = []
    errors: dict[str, list[np.ndarray]] = {name: [] for name in names}
    count = num_examples // batch_size
    with contextlib.closing(batches(source, system.tokenizer, wanted)) as iterator:
        for i in range(count):
            batch = next(iterator)
            z_i = embed_images(system, jnp.asarray(to_float(batch[f"image_{size}"])))
            embeddings.append(np.asarray(z_i))
            noise = KeyNoise(key=jax.random.key(seed), indices=jnp.arange(i * batch_size, (i + 1) * batch_size))
            rows = {"z_i": z_i, "tokens": jnp.asarray(batch["tokens"]), "mask": jnp.asarray(batch["mask"])}
            for name in names:
                options = ErrorOptions(settings=system.settings([])[name], levels=levels_of(system.stage(name)))
                step = Step(errors_of_stage, options, {"z_i": z_i})
                errors[name].append(np.asarray(program_of(system, name, step, rows, noise)()))
            report(f"measured {(i + 1) * batch_size} of {count * batch_size}")
    found = {}
    for name in names:
        stage = system.stage(name)
        rows = np.asarray(levels_of(stage))
        found[name] = X0Variance.of(stage.process.build(), rows, np.concatenate(errors[name]).T)
    return np.concatenate(embeddings), found


def _is_measured(stage: DiffusionStage) -> bool:
    """Return whether it samples embeddings by a process that has rows: Analytic-DPM is for no other."""
    return stage.writes == "z_i" and stage.process.max_steps is not None


def levels_of(stage: DiffusionStage) -> tuple[int, ...]:
    """Return the rows of a process at which its network is measured: `LEVELS` of them, evenly spaced with both ends."""
    rows = np.round(np.linspace(0, stage.process.build().num_steps - 1, LEVELS)).astype(np.int64)
    return tuple(rows.tolist())
