"""A network that reverses a diffusion process: the prior, the decoder and every upsampler (2204.06125, section 2).

(1) x_0 = normalise(target),   t ~ process,   x_t = signal x_0 + sigma eps        in the stage's `Space`
(2) loss = w_t |network(x_t, time, cond) - target_t|^2 + ...                      `unclip_jax.diffusion.losses`
(3) writes = best of denormalise(sample(process, guided network, cond))           `unclip_jax.diffusion.samplers`

with cond made by the stage's conditions, in training dropped at random.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.diffusion import (
    AnyProcessSpec,
    KeyNoise,
    ModelFn,
    NoiseSource,
    Process,
    Sampler,
    Threshold,
    Weighting,
    X0Variance,
    loss,
    samplers,
)
from unclip_jax.diffusion.losses import first_guess
from unclip_jax.images.masks import random_masks
from unclip_jax.images.pixels import to_float
from unclip_jax.models.base import Denoiser
from unclip_jax.models.clip import CLIPSpec, unit
from unclip_jax.parallel.layout import rows_per_device
from unclip_jax.stages.conditions import Condition, Fields
from unclip_jax.stages.encoders import Arrays
from unclip_jax.stages.exhibits import Cosines, Exhibit, Pictures
from unclip_jax.stages.random import DROPOUT, TIME, random_noise, stream
from unclip_jax.stages.retrieval import apart, ranks, recall
from unclip_jax.stages.settings import Options, SamplingSettings
from unclip_jax.stages.spaces import EmbeddingStats, Space
from unclip_jax.stages.stage import Batch, Encoders, Stage, StageMetrics, Weights

_COSINES = ("cosine", "cosine_shuffled", "cosine_z_t")
PREVIEW = SamplingSettings(steps=16)


class Problem(NamedTuple):
    """What a sampler solves; see `DiffusionStage.problem`."""

    process: Process
    model_fn: ModelFn
    cond: PyTree
    sampler: Sampler
    shape: tuple[int, ...]
    threshold: Threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionStage(Stage):
    """Equations (1) to (3)."""

    TAG: ClassVar = ("stage", "diffusion")

    network: Denoiser  # pyright: ignore[reportIncompatibleVariableOverride]
    process: AnyProcessSpec
    """The process that it is trained to reverse."""
    conditions: tuple[Condition, ...]
    """What the network is conditioned on."""
    output: str
    """Name of the array that it writes."""
    space: Space
    """The space that it works in."""
    weighting: Weighting = "none"
    """Weighting of timesteps in the loss."""
    x0_variance: X0Variance | None = None
    """Statistics of the trained network, which the sampler "analytic" needs."""

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for each in self.conditions for name in each.reads(self.network)))

    @property
    def writes(self) -> str:
        return self.output

    @property
    def encoders(self) -> tuple[str, ...]:
        named = [*self.space.encoders, *(name for each in self.conditions for name in each.encoders)]
        return tuple(dict.fromkeys(named))

    @property
    def needs_stats(self) -> bool:
        return self.space.needs_stats

    @property
    def image_size(self) -> int | None:
        shape = self.network.sample_shape
        return shape[0] if len(shape) == 3 else None

    def of_weights(self, trained: Stage) -> "DiffusionStage":
        """Return the stage that the weights of `trained` belong to, trained as this one is."""
        if not isinstance(trained, DiffusionStage):
            raise UserError(f"the weights are of a stage that is {trained.describe()}, no diffusion; give others")
        own, network = {type(each): each for each in self.conditions}, self.network.of_weights(trained.network)
        assert isinstance(network, Denoiser)
        conditions = tuple(
            own[type(each)].of_weights(each) if type(each) in own else each for each in trained.conditions
        )
        return dataclasses.replace(
            self,
            network=network,
            process=trained.process,
            conditions=conditions,
            output=trained.output,
            space=trained.space,
        )

    def towers(self, brought: Collection[str] = ()) -> frozenset[str]:
        return self.space.towers(brought).union(*(each.towers(self.network, brought) for each in self.conditions))

    def image_sizes(self, encoders: Encoders, brought: Collection[str] = ()) -> tuple[int, ...]:
        clip, see = encoders.get("clip"), not brought or "image" in self.towers(brought)
        seen = (clip.image_tower.image_size,) if isinstance(clip, CLIPSpec) and see else ()
        return seen if self.image_size is None else tuple(dict.fromkeys((self.image_size, *seen)))

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], StageMetrics]:
        del target
        process = self.process.build()
        written = self.space.target(self.writes, frozen, batch)
        x_0 = self.space.normalise(written, frozen)
        t = process.random_time(stream(keys, TIME))
        noise = random_noise(keys, x_0.shape[1:])
        fields: Fields = {}
        for each in self.conditions:
            fields |= each.train(self.network, frozen, batch, x_0, keys)
        model_fn = self._model_fn(params, stream(keys, DROPOUT))
        cond = self.network.Cond(**fields)
        per_example, terms = loss(process, model_fn, x_0, t, noise, cond, weighting=self.weighting)
        metrics: StageMetrics = {name: (value, jnp.ones_like(value)) for name, value in terms.items()}
        quarter = process.quarter(t)
        for i in range(4):
            metrics[f"mse_q{i}"] = (terms["mse"], (quarter == i).astype(jnp.float32))
        if self.space.ranks:
            # Dropout has keys for every row of the batch, not for some.
            metrics |= self._cosines(process, self._model_fn(params), frozen["stats"], fields, written, noise)
        return per_example, metrics

    def measure(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[StageMetrics, dict[str, Array]]:
        """Return the loss and its quarters with every condition and without dropout, and the loss without each
        condition that training drops at times: the gap is what the network makes of it. Of embeddings also what it
        guesses from its conditions alone (`losses.first_guess`)."""
        whole = self._dropping({})
        loss, metrics = whole.loss(params, params, frozen, batch, keys)
        ones = jnp.ones_like(loss)
        found: StageMetrics = {"loss": (loss, ones)}
        found |= {name: value for name, value in metrics.items() if name not in _COSINES}
        for each in self.conditions:
            if each.drops(self.network):
                tag = each.TAG[1]
                without = self._dropping({tag: 1.0}).loss(params, params, frozen, batch, keys)[0]
                found[f"loss_without_{tag}"] = (without, ones)
        if not self.space.ranks:
            return found, {}
        z_i, stats = self.space.target(self.writes, frozen, batch), frozen["stats"]
        cond = self.condition(Weights(params, frozen), batch, len(z_i))
        noise = random_noise(keys, z_i.shape[1:])
        guess = stats.denormalise(first_guess(self.process.build(), self._model_fn(params), noise, cond))
        return found, {"guess": unit(guess), "true": unit(z_i), "z_t": unit(cond.z_t)}

    def score(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return, of embeddings, how near the guesses are to the true ones, how near z_t is, and the recall of the true
        one among all by its guess."""
        if not arrays:
            return {}
        guess, true, z_t = (np.asarray(arrays[name], np.float64) for name in ("guess", "true", "z_t"))
        found = ranks(guess, true)
        return {
            "cosine": float(np.mean(np.sum(guess * true, axis=1))),
            "cosine_z_t": float(np.mean(np.sum(z_t * true, axis=1))),
            "retrieval": recall(found, 1),
            "retrieval_5": recall(found, 5),
        }

    def memorised(self, training: Mapping[str, float], held_out: Mapping[str, float], count: int) -> str | None:
        if "retrieval" not in training or not apart(training["retrieval"], held_out["retrieval"], count):
            return None
        return (
            f"of {count} captions it finds the {self.writes} of {training['retrieval']:.1%} where it has trained on "
            f"them, and of {held_out['retrieval']:.1%} held out (by chance {1 / count:.1%}): it has learnt them by "
            "heart; train on more pictures, a smaller network, with more --optim.weight-decay or for fewer steps"
        )

    def _dropping(self, rates: Mapping[str, float]) -> "DiffusionStage":
        """Return the stage as it is measured: conditions dropped at these rates, others never, and no dropout."""
        conditions = tuple(each.dropped_at(rates.get(each.TAG[1], 0.0)) for each in self.conditions)
        return dataclasses.replace(self, network=self.network.without_dropout(), conditions=conditions)

    def sample(self, options: Options, weights: Weights, rows: Arrays, noise: NoiseSource) -> Float[Array, " b *dims"]:
        problem = self.problem(options, weights, {name: value for name, value in rows.items() if name != "x_T"})
        x_0 = samplers.sample(
            problem.process,
            problem.model_fn,
            problem.cond,
            problem.sampler,
            noise,
            shape=problem.shape,
            x_T=rows.get("x_T"),
            threshold=problem.threshold,
        )
        written = self.space.denormalise(x_0, weights.frozen)
        if not self.space.ranks:
            return written
        count = options.settings.num_candidates
        return self.space.best(written, jax.tree.map(lambda x: x[::count], problem.cond), count)

    @property
    def num_previewed(self) -> int:
        return 8 if self.image_size is not None else 16

    def preview(self, weights: Weights, batch: Batch) -> Exhibit:
        """Return pictures, see `_pictures`; of embeddings the cosines of sampled with true ones: a good prior shows a
        diagonal."""
        if self.image_size is not None:
            return self._pictures(weights, batch)
        true = self.space.target(self.writes, weights.frozen, batch)
        sampled = self.sample(Options(settings=PREVIEW), weights, batch, _preview_noise(len(true)))
        seen = [name for name, value in batch.items() if name.startswith("image_") and value.ndim == 4]
        pictures = to_float(batch[seen[0]]) if seen else None
        rows = f"captions, {self.writes} sampled"
        return Cosines(values=unit(sampled) @ unit(true).T, pictures=pictures, rows=rows, columns=f"true {self.writes}")

    def draw(
        self, weights: Weights, batch: Batch, noise: NoiseSource
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h w 3"]]:
        x_0, arrays = to_float(batch[f"image_{self.image_size}"]), dict(batch)
        for each in self.conditions:
            arrays |= each.derive(self.network, x_0)
        return x_0, self.sample(Options(settings=PREVIEW), weights, arrays, noise)

    def problem(self, options: Options, weights: Weights, inputs: Arrays) -> Problem:
        """Return the problem to solve for the rows of `inputs`, the arrays that the stage reads, for any sampler or
        operation."""
        settings = options.settings
        count = len(next(value for value in jax.tree.leaves(dict(inputs))))
        cond = self.condition(weights, inputs, count, options.without)
        if settings.num_candidates > 1:
            cond = jax.tree.map(lambda x: jnp.repeat(x, settings.num_candidates, axis=0), cond)
        return Problem(
            process=settings.build_process(self.process),
            model_fn=settings.guided(self.process, self._model_fn(weights.params)),
            cond=cond,
            sampler=settings.build_sampler(self.x0_variance),
            shape=(count * settings.num_candidates, *self.network.sample_shape),
            threshold=settings.build_threshold(self.space.limit),
        )

    def condition(self, weights: Weights, inputs: Arrays, count: int, without: tuple[str, ...] = ()) -> PyTree:
        """Return the network's conditioning inputs for `count` rows, nothing dropped but the conditions `without`."""
        fields: Fields = {}
        for each in self.conditions:
            own = each.sample(self.network, weights.frozen, inputs, count)
            fields |= each.null(own) if each.TAG[1] in without else own
        return self.network.Cond(**fields)

    def noise(self, key: Key[Array, ""], indices: Int[Array, " b"], settings: SamplingSettings) -> KeyNoise:
        # Of each image's candidates, side by side.
        candidates = settings.num_candidates
        numbers = (indices[:, None] * candidates + jnp.arange(candidates)).reshape(-1)
        return KeyNoise(key=key, indices=numbers)

    def check(self) -> None:
        learned = self.network.learns_variance
        if learned != (self.process.variance == "learned_range"):
            raise UserError(
                f"the network's learned_sigma is {learned} but its process has variance {self.process.variance!r}; "
                "learned_sigma goes with 'learned_range' and only with it"
            )
        if "low_res" in self.network.cond_fields and not any(each.TAG[1] == "low_res" for each in self.conditions):
            raise UserError(
                "the network wants a low-resolution image, but the stage has none; only upsamplers have one"
            )
        for each in self.conditions:
            each.check(self.network)

    def check_settings(self, name: str, settings: SamplingSettings) -> None:
        settings.check(name, self.process)
        if settings.num_candidates > 1 and not self.space.ranks:
            found = f"num_candidates is {settings.num_candidates}"
            raise UserError(f"{name}: {found}; only a stage of embeddings chooses among some, set it to 1")
        # What a sampler lacks is missed here, not when its stage begins.
        settings.build_sampler(self.x0_variance)

    def describe(self) -> str:
        from_sizes = "".join(f"{name.removeprefix('image_')} -> " for name in self.reads if name.startswith("image_"))
        return f"{from_sizes}{self.network.describe()}; {self.process.describe()}, predicts {self.process.prediction}"

    def _pictures(self, weights: Weights, batch: Batch) -> Pictures:
        """Return images, those that a condition is made of, such as a low-resolution one, and samples; for an
        inpainting network the masked images as well, and their inpainting."""
        options, x_0 = Options(settings=PREVIEW), to_float(batch[f"image_{self.image_size}"])
        rows, arrays = {"images": x_0}, dict(batch)
        for each in self.conditions:
            if derived := each.derive(self.network, x_0):
                arrays |= derived
                fields = each.sample(self.network, weights.frozen, arrays, len(x_0))
                rows |= {name: field for name, field in fields.items() if field.shape == x_0.shape}
        noise = _preview_noise(len(x_0))
        rows["samples"] = self.sample(options, weights, arrays, noise)
        if "masked_image" in self.network.cond_fields:
            mask = random_masks(jax.random.split(jax.random.key(1), len(x_0)), x_0.shape[1], 0.0)
            known = {"known_image": x_0, "mask_to_fill": mask}
            rows["masked"] = jnp.where(mask[..., None], 0.0, x_0)
            filled = self.sample(options, weights, arrays | known, noise)
            rows["inpainted"] = jnp.where(mask[..., None], filled, x_0)
        return Pictures(rows=tuple(rows.values()), names=tuple(name.replace("_", " ") for name in rows))

    def _model_fn(self, params: Params, dropout_keys: Key[Array, " b"] | None = None) -> ModelFn:
        return functools.partial(self.network.apply, params, dropout_keys=dropout_keys)

    def _cosines(
        self, process: Process, model_fn: ModelFn, stats: EmbeddingStats, fields: Fields, z_i: Array, noise: Array
    ) -> StageMetrics:
        """Measure how well the caption alone predicts z_i: the network's prediction from pure noise, that for the
        caption of the next example, and z_t itself. For every 16th example, since it costs a forward pass, or for more
        where a device has fewer; a batch of odd size has none."""
        b = len(z_i)
        # Groups of neighbours on one device, so that nothing leaves it, unless all have an odd number of rows.
        group = math.gcd(rows_per_device(b), 16)
        group = group if group > 1 else math.gcd(b, 16)
        if group == 1:
            return {}

        def pairs(x: Array) -> Array:
            # Rows 0, 1, 16, 17, ...
            return x.reshape(b // group, group, *x.shape[1:])[:, :2].reshape(-1, *x.shape[1:])

        kept = {name: jnp.zeros_like(x) if name.startswith("drop_") else x for name, x in fields.items()}
        cond = jax.tree.map(pairs, self.network.Cond(**kept))
        noise = jnp.repeat(pairs(noise)[::2], 2, axis=0)
        guesses = stats.denormalise(jax.lax.stop_gradient(first_guess(process, model_fn, noise, cond)))
        true, weights = unit(pairs(z_i)[::2]), (jnp.arange(b) % group == 0).astype(jnp.float32)

        def metric(z: Array) -> tuple[Array, Array]:
            return jnp.repeat(jnp.sum(unit(z) * true, axis=-1), group), weights

        return dict(zip(_COSINES, map(metric, (guesses[::2], guesses[1::2], cond.z_t[::2])), strict=True))


def _preview_noise(count: int) -> KeyNoise:
    return KeyNoise(key=jax.random.key(0), indices=jnp.arange(count))
