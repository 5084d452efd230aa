"""Training the diffusion prior on the embeddings of a frozen CLIP (2204.06125, section 2.2, equation 2).

(1) L = E_t |f(z^(t), t, y) - z|^2,   z = normalise(z_i)       `EmbeddingStats`, measured before the first step

The caption, z_t and hidden states alike, is dropped for `drop_caption` of the examples.
"""

import dataclasses
import functools
import math
from collections.abc import Generator
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt8

from unclip_jax.conditioning import prior_cond
from unclip_jax.core.config import to_json
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.gaussian import Process, ProcessSpec
from unclip_jax.diffusion.guidance import Threshold
from unclip_jax.diffusion.losses import Weighting, loss
from unclip_jax.diffusion.noise import KeyNoise
from unclip_jax.diffusion.samplers import DDIM, sample
from unclip_jax.images.pixels import to_float
from unclip_jax.models import clip, prior
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import EmbeddingStats, PriorCond, PriorSpec
from unclip_jax.parallel.distributed import fetch, gather_rows
from unclip_jax.parallel.layout import rows_together
from unclip_jax.sharding import transformer_rules
from unclip_jax.stages.settings import StageSettings
from unclip_jax.training.checkpoint import Meta
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.loop import train
from unclip_jax.training.preview import heat_map
from unclip_jax.training.stage import Batch, Preview, StageMetrics
from unclip_jax.training.stages import common
from unclip_jax.training.stages.common import READING, Blueprint, DataConfig, FrozenCLIP
from unclip_jax.training.state import State

STATS_EXAMPLES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """A prior run."""

    model: PriorSpec
    """The network. Its embed_dim, text_width, context and vocabulary are taken from the CLIP."""
    process: ProcessSpec = ProcessSpec(prediction="x0")
    """The diffusion over embeddings."""
    data: DataConfig
    """Where pairs come from."""
    optim: OptimConfig
    """The optimiser."""
    run: RunConfig
    """The run."""
    clip: str = ""
    """The frozen CLIP: the workdir of a CLIP run, or a bundle."""
    start_from: str = ""
    """Weights to start from instead of random ones: the workdir of another run, or a bundle."""
    normalise: Literal["whiten", "scale"] = "whiten"
    """Whiten every dimension of z_i by its own mean and deviation, or scale all of them by one deviation."""
    drop_caption: float = 0.1
    """Share of examples that train without their caption, for guidance."""
    weighting: Weighting = "none"
    """How timesteps are weighted in the loss."""
    sampling: StageSettings = StageSettings()
    """How a bundle samples this stage where nothing else is asked for."""

    def __post_init__(self) -> None:
        self.sampling.check("sampling", self.process)


@dataclasses.dataclass(frozen=True)
class PriorStage:
    """Equation (1). `frozen` is {"clip": parameters, "stats": EmbeddingStats}."""

    spec: PriorSpec
    process: Process
    clip_spec: CLIPSpec
    drop_caption: float
    weighting: Weighting

    def init(self, key: Key[Array, ""]) -> Params:
        return prior.init_params(self.spec, key)

    def encode(self, frozen: PyTree, batch: Batch) -> tuple[Float[Array, "b d"], PriorCond]:
        """z_i of the images, and what the prior is told about their captions, nothing dropped."""
        images = to_float(batch[f"image_{self.clip_spec.image_tower.image_size}"])
        z_i = clip.encode_image(self.clip_spec, frozen["clip"], images)
        return z_i, prior_cond(self.spec, self.clip_spec, frozen["clip"], batch["tokens"], batch["mask"])

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], StageMetrics]:
        z_i, told = self.encode(frozen, batch)
        stats = frozen["stats"]
        x_0 = stats.normalise(z_i)
        t = common.draw_timesteps(keys, self.process.schedule.num_steps)
        noise = common.draw_noise(keys, x_0.shape[1:])
        cond = dataclasses.replace(told, drop=common.draw_drop(keys, self.drop_caption, common.DROP_CAPTION))

        def model_fn(x_t: Array, t: Array, cond: PriorCond) -> Array:
            return prior.apply(self.spec, params, x_t, t, cond)

        per_example, terms = loss(self.process, model_fn, x_0, t, noise, cond, weighting=self.weighting)
        metrics = common.diffusion_metrics(terms, t, self.process.schedule.num_steps)
        return per_example, metrics | self._cosines(model_fn, stats, z_i, told, noise)

    def _cosines(self, model_fn, stats: EmbeddingStats, z_i: Array, told: PriorCond, noise: Array) -> StageMetrics:
        """How well the caption alone predicts z_i: the network's best guess from pure noise, that guess for the
        caption of the next example, and z_t itself. For every 16th example, since it costs a forward pass, or for
        more where a device has fewer; a batch of odd size has none."""
        b = len(z_i)
        # Groups of neighbours on one device, so that nothing leaves it, unless all have an odd number of rows.
        group = math.gcd(rows_together(b), 16)
        group = group if group > 1 else math.gcd(b, 16)
        if group == 1:
            return {}

        def pairs(x: Array) -> Array:
            # Rows 0, 1, 16, 17, ...
            return x.reshape(b // group, group, *x.shape[1:])[:, :2].reshape(-1, *x.shape[1:])

        told, noise = jax.tree.map(pairs, told), jnp.repeat(pairs(noise)[::2], 2, axis=0)
        last = jnp.full(len(noise), self.process.schedule.num_steps - 1)
        output = self.process.to_x0(model_fn(noise, last, told), noise, last)
        guesses = stats.denormalise(jax.lax.stop_gradient(output))
        true, weights = clip.unit(pairs(z_i)[::2]), (jnp.arange(b) % group == 0).astype(jnp.float32)

        def metric(z: Array) -> tuple[Array, Array]:
            return jnp.repeat(jnp.sum(clip.unit(z) * true, axis=-1), group), weights

        return {
            "cosine": metric(guesses[::2]),
            "cosine_shuffled": metric(guesses[1::2]),
            "cosine_z_t": metric(told.z_t[::2]),
        }


def fitted(config: PriorConfig, clip_spec: CLIPSpec) -> PriorConfig:
    """`config` with what its network takes from the CLIP."""
    model = dataclasses.replace(
        config.model,
        embed_dim=clip_spec.embed_dim,
        text_width=clip_spec.text_tower.width,
        context=clip_spec.text_tower.context,
        text=common.reading(config.model.text, clip_spec),
    )
    return dataclasses.replace(config, model=model)


def blueprint(config: PriorConfig, clip_spec: CLIPSpec) -> Blueprint:
    """The run that `config` describes under a CLIP of that spec."""
    spec = config.model
    stage = PriorStage(spec, config.process.build(), clip_spec, config.drop_caption, config.weighting)
    batch = config.data.holding(clip_spec.image_tower.image_size, context=clip_spec.text_tower.context)
    rules = transformer_rules(spec)
    return Blueprint(stage=stage, rules=rules, batch=batch, clip_spec=clip_spec, needs_stats=True)


def train_prior(config: PriorConfig) -> State:
    """Measures the statistics of z_i, then trains a prior; see `unclip_jax.training.loop.train`."""
    frozen_clip = FrozenCLIP.load(config.clip)
    clip_spec = frozen_clip.spec
    config = fitted(config, clip_spec)
    plan = blueprint(config, clip_spec)
    source = config.data.open(captions=True)

    def batches(start_step: int) -> Generator[dict[str, np.ndarray], None, None]:
        return config.data.batches(source, frozen_clip.tokenizer, plan.batch, start_step)

    stats = measure_stats(frozen_clip, batches, config.normalise)
    meta = Meta(
        kind="prior",
        config=config,
        extra={
            "tokenizer": to_json(frozen_clip.tokenizer),
            "clip_identity": frozen_clip.identity,
            "stats": {"mean": np.asarray(stats.mean).tolist(), "std": np.asarray(stats.std).tolist()},
            "sampling": to_json(config.sampling),
        },
        may_change=(*READING, "clip", "start_from", "sampling.*"),
        must_match=("clip_identity", "tokenizer"),
    )
    frozen = {"clip": frozen_clip.params, "stats": stats}
    stage = cast(PriorStage, plan.stage)
    return train(
        stage,
        frozen,
        batches,
        rules=plan.rules,
        frozen_rules=plan.frozen_rules,
        optim=config.optim,
        run=config.run,
        meta=meta,
        preview=cosine_preview(stage, batches),
        start_params=common.load_start(config.start_from, "prior"),
    )


def measure_stats(frozen_clip: FrozenCLIP, batches: common.Batches, how: Literal["whiten", "scale"]) -> EmbeddingStats:
    """`EmbeddingStats` over the first examples of the run, those of all hosts; "scale" has mean 0 and one deviation."""
    size = frozen_clip.spec.image_tower.image_size
    encode = jax.jit(functools.partial(clip.encode_image, frozen_clip.spec))
    iterator = batches(0)
    embeddings: list[np.ndarray] = []
    while sum(map(len, embeddings)) < STATS_EXAMPLES:
        own = np.asarray(encode(frozen_clip.params, to_float(next(iterator)[f"image_{size}"])))
        embeddings.append(gather_rows(own))
    iterator.close()
    z_i = np.concatenate(embeddings).astype(np.float64)
    if how == "scale":
        mean, std = np.zeros(z_i.shape[1]), np.full(z_i.shape[1], np.sqrt(np.mean(z_i**2)))
    else:
        mean, std = z_i.mean(0), z_i.std(0)
    return EmbeddingStats(mean=jnp.asarray(mean, jnp.float32), std=jnp.asarray(std, jnp.float32))


def cosine_preview(stage: PriorStage, batches: common.Batches) -> Preview:
    """Cosines of 16 sampled z_i (rows) with the true ones (columns): a good prior shows a diagonal."""

    @jax.jit
    def cosines(params: Params, frozen: PyTree, batch: Batch) -> Array:
        z_i, cond = stage.encode(frozen, batch)
        stats = frozen["stats"]

        def model_fn(x_t: Array, t: Array, cond: PriorCond) -> Array:
            return prior.apply(stage.spec, params, x_t, t, cond)

        noise = KeyNoise(key=jax.random.key(0), indices=jnp.arange(len(z_i)))
        z = sample(
            stage.process,
            model_fn,
            cond,
            DDIM(steps=16),
            noise,
            shape=z_i.shape,
            threshold=Threshold(kind="none"),
        )
        return clip.unit(stats.denormalise(z)) @ clip.unit(z_i).T

    examples = functools.cache(lambda: common.first_examples(batches, 16))

    def preview(params: Params, frozen: PyTree, step: int) -> UInt8[np.ndarray, "h w 3"]:
        del step
        return heat_map(fetch(cosines(params, frozen, examples())))

    return preview
