"""Pictures that a run leaves behind while it trains: the stage's own sampling on its first examples."""

import contextlib
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from unclip_jax.core.typing import Params
from unclip_jax.diffusion.noise import KeyNoise
from unclip_jax.images.masks import random_masks
from unclip_jax.images.pixels import grid, to_float, to_uint8
from unclip_jax.models.clip import unit
from unclip_jax.parallel.distributed import gather_rows, to_host
from unclip_jax.stages.contrastive import ContrastiveStage
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.operations import RepaintOptions, repaint_stage
from unclip_jax.stages.settings import Options, SamplingSettings
from unclip_jax.stages.stage import Batch, Stage, Weights
from unclip_jax.training.loop import Batches, Preview

CELL = 16
"""Side in pixels of one entry of a heat map."""
PICTURES, COSINES = 8, 16
"""Examples of a preview in pixels, and of one in cosines."""
SETTINGS = SamplingSettings(steps=16)
_COLD, _HOT = np.array([12, 18, 60]), np.array([255, 232, 130])


def make_preview(stage: Stage, batches: Batches) -> Preview | None:
    """Make the preview of a stage, see `cosines_of_pairs`, `cosines_of_samples` and `pictures`; `batches` are of whole
    images. None for a stage of another kind, which has nothing to show.

    Every process of a run must call it, at the same steps.
    """
    if isinstance(stage, ContrastiveStage):
        return _heat_map_of(functools.partial(cosines_of_pairs, stage), batches)
    if not isinstance(stage, DiffusionStage):
        return None
    if stage.image_size is None:
        return _heat_map_of(functools.partial(cosines_of_samples, stage), batches)
    draw, size = jax.jit(functools.partial(pictures, stage)), stage.image_size
    examples = functools.cache(lambda: first_examples(batches, PICTURES))

    def preview(params: Params, frozen: PyTree, step: int) -> UInt8[np.ndarray, "h w 3"]:
        del step
        real = np.asarray(examples()[f"image_{size}"])
        rows = [to_uint8(to_host(row)) for row in draw(params, frozen, examples())]
        return grid(np.concatenate([real, *rows]), columns=len(real))

    return preview


def first_examples(batches: Batches, count: int) -> dict[str, np.ndarray]:
    """Return the first `count` examples of a run: the same on every host. All of them must call it."""
    with contextlib.closing(batches(0)) as iterator:
        return {name: gather_rows(value[:count])[:count] for name, value in next(iterator).items()}


def cosines_of_pairs(stage: ContrastiveStage, params: Params, frozen: PyTree, batch: Batch) -> Float[Array, "b b"]:
    """Return cosines of images (rows) with their captions (columns): a good CLIP shows a diagonal."""
    del frozen
    images = to_float(batch[f"image_{stage.network.image_tower.image_size}"])
    z_i = unit(stage.network.encode_image(params, images))
    return z_i @ unit(stage.network.encode_text(params, batch["tokens"]).z_t).T


def cosines_of_samples(stage: DiffusionStage, params: Params, frozen: PyTree, batch: Batch) -> Float[Array, "b b"]:
    """Return cosines of sampled embeddings (rows) with the true ones (columns): a good prior shows a diagonal."""
    true = stage.space.target(stage.writes, frozen, batch)
    sampled = stage.sample(Options(settings=SETTINGS), Weights(params, frozen), batch, _noise(len(true)))
    return unit(sampled) @ unit(true).T


def pictures(stage: DiffusionStage, params: Params, frozen: PyTree, batch: Batch) -> list[Float[Array, "b h w 3"]]:
    """Return rows of images: those that a condition is made of, such as a low-resolution one, and samples; for an
    inpainting network the masked images as well, and their inpainting.
    """
    weights, options = Weights(params, frozen), Options(settings=SETTINGS)
    x_0 = to_float(batch[f"image_{stage.image_size}"])
    arrays: dict[str, Array] = dict(batch)
    rows = []
    for each in stage.conditions:
        if derived := each.derive(stage.network, x_0):
            arrays |= derived
            fields = each.sample(stage.network, frozen, arrays, len(x_0))
            rows += [field for field in fields.values() if field.shape == x_0.shape]
    rows.append(stage.sample(options, weights, arrays, _noise(len(x_0))))
    if "masked_image" not in stage.network.cond_fields:
        return rows
    mask = random_masks(jax.random.split(jax.random.key(1), len(x_0)), x_0.shape[1], 0.0)
    known = {"known_image": x_0, "mask_to_fill": mask}
    filled = RepaintOptions(settings=SETTINGS, resampling=None)
    return [
        *rows,
        jnp.where(mask[..., None], 0.0, x_0),
        repaint_stage(stage, filled, weights, arrays | known, _noise(len(x_0))),
    ]


def heat_map(values: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "h w 3"]:
    """Render a matrix of cosines as squares from dark blue (-1, or the smallest) to yellow (the largest)."""
    low, high = float(values.min()), float(values.max())
    share = ((values - low) / max(high - low, 1e-6))[..., None]
    cells = (_COLD + share * (_HOT - _COLD)).astype(np.uint8)
    return cells.repeat(CELL, axis=0).repeat(CELL, axis=1)


def _heat_map_of(cosines: Callable[..., Array], batches: Batches) -> Preview:
    compiled, examples = jax.jit(cosines), functools.cache(lambda: first_examples(batches, COSINES))

    def preview(params: Params, frozen: PyTree, step: int) -> UInt8[np.ndarray, "h w 3"]:
        del step
        return heat_map(to_host(compiled(params, frozen, examples())))

    return preview


def _noise(count: int) -> KeyNoise:
    return KeyNoise(key=jax.random.key(0), indices=jnp.arange(count))
