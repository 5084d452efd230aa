"""CLIP's training: the contrastive loss over the pairs of a batch (Radford et al., 2103.00020, figure 3).

(1) L_i = -( log softmax_j(logits[i, j])[i] + log softmax_j(logits[j, i])[i] ) / 2

Negatives are the other pairs of the batch; with `optim.accumulate` > 1, of the microbatch. A hard negative of caption i
(`unclip_jax.data.negatives`) is one more column j in the first softmax of image i.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from unclip_jax.images.pixels import to_float
from unclip_jax.models.clip import MAX_LOGIT_SCALE, CLIPSpec, unit
from unclip_jax.parallel.layout import all_gather_batch, global_rows
from unclip_jax.stages.exhibits import Cosines
from unclip_jax.stages.retrieval import apart, ranks, recall
from unclip_jax.stages.stage import Batch, Encoders, Stage, StageMetrics, Weights, crowded

NOTABLE = 0.05
"""Share of a batch that has to be repeated before it is worth a line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveStage(Stage):
    """Equation (1). It makes nothing in a system: what it trains becomes an encoder there."""

    TAG: ClassVar = ("stage", "contrastive")

    network: CLIPSpec  # pyright: ignore[reportIncompatibleVariableOverride]

    def image_sizes(self, encoders: Encoders, brought: Collection[str] = ()) -> tuple[int, ...]:
        del encoders, brought
        return (self.network.image_tower.image_size,)

    def context(self, encoders: Encoders) -> int | None:
        del encoders
        return self.network.text_tower.context

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], StageMetrics]:
        del target, frozen, keys
        images = to_float(batch[self._images])
        z_i = unit(self.network.encode_image(params, images))
        scale = jnp.exp(jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE))

        def embed(tokens: Array) -> Array:
            return unit(self.network.encode_text(params, tokens).z_t)

        z_t = embed(batch["tokens"])
        # Each row is compared with every row of the global batch, wherever that lies; `own` is its index there.
        rows = jnp.arange(len(z_i))
        own, ones = global_rows(len(z_i)), jnp.ones(len(z_i))
        metrics: StageMetrics = {}
        of_images, of_texts = scale * z_i @ all_gather_batch(z_t).T, scale * z_t @ all_gather_batch(z_i).T
        candidates = of_images
        if "negative_tokens" in batch:
            negative, given = scale * jnp.sum(z_i * embed(batch["negative_tokens"]), axis=1), batch["has_negative"]
            candidates = jnp.column_stack([of_images, jnp.where(given, negative, -jnp.inf)])
            over = (of_images[rows, own] > negative).astype(jnp.float32)
            metrics["over_negative"] = (over, given.astype(jnp.float32))
        image_to_text = jax.nn.log_softmax(candidates, axis=1)[rows, own]
        text_to_image = jax.nn.log_softmax(of_texts, axis=1)[rows, own]
        metrics |= {
            "image_to_text": ((of_images.argmax(1) == own).astype(jnp.float32), ones),
            "text_to_image": ((of_texts.argmax(1) == own).astype(jnp.float32), ones),
            "logit_scale": (ones * params["logit_scale"], ones),
        }
        return -(image_to_text + text_to_image) / 2, metrics

    @property
    def judged_by(self) -> tuple[str, bool]:
        # The loss of a CLIP that is too sure of itself rises while it still learns to tell more pairs apart.
        return "retrieval", True

    def measure(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[StageMetrics, dict[str, Array]]:
        """Return embeddings alone: every pair is compared with all of the evaluation, whatever batch it was in."""
        del frozen, keys
        z_i = unit(self.network.encode_image(params, to_float(batch[self._images])))
        arrays = {"z_i": z_i, "z_t": unit(self.network.encode_text(params, batch["tokens"]).z_t)}
        if "negative_tokens" in batch:
            arrays["negative"] = unit(self.network.encode_text(params, batch["negative_tokens"]).z_t)
            arrays["has_negative"] = batch["has_negative"]
        scale = jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)
        return {}, arrays | {"scale": jnp.broadcast_to(scale, len(z_i))}

    def score(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return equation (1) and recalls among all pairs (`unclip_jax.stages.retrieval`)."""
        z_i, z_t, scale = (np.asarray(arrays[name], np.float64) for name in ("z_i", "z_t", "scale"))
        logits = np.exp(scale[0]) * z_i @ z_t.T
        candidates, scores = logits, {}
        if "negative" in arrays:
            given = np.asarray(arrays["has_negative"])
            negative = np.exp(scale[0]) * np.sum(z_i * np.asarray(arrays["negative"], np.float64), axis=1)
            candidates = np.column_stack([logits, np.where(given, negative, -np.inf)])
            if given.any():
                scores["over_negative"] = float(np.mean(np.diag(logits)[given] > negative[given]))
        of_images, of_texts = (np.log(np.sum(np.exp(x - x.max()), axis=1)) + x.max() for x in (candidates, logits.T))
        to_text, to_image = ranks(z_i, z_t), ranks(z_t, z_i)
        return scores | {
            "loss": float(np.mean((of_images + of_texts) / 2 - np.diag(logits))),
            "image_to_text": recall(to_text, 1),
            "image_to_text_5": recall(to_text, 5),
            "text_to_image": recall(to_image, 1),
            "text_to_image_5": recall(to_image, 5),
            "retrieval": (recall(to_text, 1) + recall(to_image, 1)) / 2,
        }

    def memorised(self, training: Mapping[str, float], held_out: Mapping[str, float], count: int) -> str | None:
        if not apart(training["retrieval"], held_out["retrieval"], count):
            return None
        return (
            f"CLIP finds {training['retrieval']:.1%} of training pairs, and {held_out['retrieval']:.1%} of those held "
            f"out (among {count}; by chance {1 / count:.1%}): it has learnt the pictures by heart, and what it tells "
            "later stages of new ones is worth little; train on more pictures, on a smaller CLIP, with more "
            "--optim.weight-decay or for fewer steps, or start from a CLIP that knows more"
        )

    @property
    def num_previewed(self) -> int:
        return 16

    def preview(self, weights: Weights, batch: Batch) -> Cosines:
        """Return the cosines of captions with images: a good CLIP shows a diagonal."""
        images = to_float(batch[self._images])
        z_i = unit(self.network.encode_image(weights.params, images))
        z_t = unit(self.network.encode_text(weights.params, batch["tokens"]).z_t)
        return Cosines(values=z_t @ z_i.T, pictures=images, rows="captions, z_t", columns="images, z_i")

    def remarks_on_sizes(self, batch_size: int, num_records: int, microbatches: int, hard: bool) -> Iterator[str]:
        if min(batch_size // microbatches, num_records) == 1 and not hard:
            yield (
                "a pair that is compared with no other teaches CLIP nothing; "
                "train on more pictures, raise --data.batch-size, or lower --optim.accumulate"
            )
        elif batch_size > num_records:
            yield crowded(batch_size, num_records, ", and the loss takes copies of a pair for negatives")

    def remarks_on_batch(self, batch: Mapping[str, np.ndarray], repeated: bool) -> Iterator[str]:
        pictures = batch[self._images]
        count = len(pictures)
        found = []
        for name, rows in {"caption": batch["tokens"], "picture": pictures}.items():
            copies = count - len({row.tobytes() for row in rows})
            if copies >= NOTABLE * count:
                found.append(f"{copies} repeat the {name}")
        if found and not repeated:
            told = f"of {count} pairs of the first batch {' and '.join(found)} of another"
            yield f"{told}, and the loss takes them for negatives"

    def describe(self) -> str:
        return "contrastive"

    @property
    def _images(self) -> str:
        return f"image_{self.network.image_tower.image_size}"
