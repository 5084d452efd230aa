"""Training CLIP: the contrastive loss over the pairs of a batch (Radford et al., 2103.00020, figure 3).

(1) L_i = -( log softmax_j(logits[i, j])[i] + log softmax_j(logits[j, i])[i] ) / 2

Negatives are the other pairs of the batch; with `optim.accumulate` > 1, of the microbatch. A hard negative of caption i
(`unclip_jax.data.negatives`) is one more column j in the first softmax of image i.
"""

import dataclasses
import functools
from collections.abc import Generator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt8

from unclip_jax.config import to_json
from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.images import to_float
from unclip_jax.models import clip
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.training.checkpoint import Meta
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.loop import train
from unclip_jax.training.preview import heat_map
from unclip_jax.training.stage import Batch, Preview, StageMetrics
from unclip_jax.training.stages import common
from unclip_jax.training.stages.common import READING, DataConfig
from unclip_jax.training.state import State
from unclip_jax.typing import Params

TOKENIZER_CAPTIONS = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """A CLIP run."""

    model: CLIPSpec
    """The towers. `text.vocab_size` is the most tokens the tokenizer may learn."""
    data: DataConfig
    """Where pairs come from."""
    optim: OptimConfig
    """The optimiser."""
    run: RunConfig
    """The run."""
    start_from: str = ""
    """Weights to start from instead of random ones: the workdir of another run, or a bundle."""
    tokenizer: str | None = None
    """Folder of a tokenizer to use; None trains one on the captions."""
    negatives: tuple[str, ...] = ()
    """Groups of words, "left right" "red green blue", that change places in a caption to make hard negatives."""


@dataclasses.dataclass(frozen=True)
class CLIPStage:
    """Equation (1)."""

    spec: CLIPSpec

    def init(self, key: Key[Array, ""]) -> Params:
        return clip.init_params(self.spec, key)

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], StageMetrics]:
        del frozen, keys
        images = to_float(batch[f"image_{self.spec.image_tower.image_size}"])
        rows, hard = len(images), "negative_tokens" in batch
        captions = [batch["tokens"], batch["negative_tokens"]] if hard else [batch["tokens"]]
        every = clip.apply(self.spec, params, images, jnp.concatenate(captions))
        logits = candidates = every[:, :rows]
        ones, own, metrics = jnp.ones(rows), jnp.arange(rows), {}
        if hard:
            negative, given = jnp.diagonal(every[:, rows:]), batch["has_negative"]
            candidates = jnp.column_stack([logits, jnp.where(given, negative, -jnp.inf)])
            over = (jnp.diagonal(logits) > negative).astype(jnp.float32)
            metrics["over_negative"] = (over, given.astype(jnp.float32))
        of_image = jnp.diagonal(jax.nn.log_softmax(candidates, axis=1))
        of_text = jnp.diagonal(jax.nn.log_softmax(logits, axis=0))
        metrics |= {
            "image_to_text": ((logits.argmax(1) == own).astype(jnp.float32), ones),
            "text_to_image": ((logits.argmax(0) == own).astype(jnp.float32), ones),
            "logit_scale": (ones * params["logit_scale"], ones),
        }
        return -(of_image + of_text) / 2, metrics


def train_clip(config: CLIPConfig) -> State:
    """Trains a tokenizer (unless one is given) and a CLIP; see `unclip_jax.training.loop.train`."""
    source = config.data.open(captions=True)
    if config.tokenizer is None:
        count = min(len(source), TOKENIZER_CAPTIONS)
        captions = (source[i].caption for i in np.linspace(0, len(source) - 1, count).astype(int).tolist())
        tokenizer = Tokenizer.train(captions, config.model.text_tower.vocab_size)
    else:
        tokenizer = Tokenizer.from_file(config.tokenizer)
    text = dataclasses.replace(
        config.model.text_tower, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id
    )
    spec = dataclasses.replace(config.model, text=text)
    config = dataclasses.replace(config, model=spec)

    def batches(start_step: int) -> Generator[dict[str, np.ndarray], None, None]:
        return config.data.batches(
            source,
            tokenizer,
            start_step,
            sizes=(spec.image_tower.image_size,),
            context=spec.text_tower.context,
            negatives=config.negatives,
        )

    stage = CLIPStage(spec)
    meta = Meta(
        kind="clip",
        config=config,
        extra={"tokenizer": to_json(tokenizer)},
        may_change=(*READING, "start_from"),
        must_match=("tokenizer",),
    )
    preview = similarity_preview(stage, batches)
    return train(
        stage,
        {},
        batches,
        optim=config.optim,
        run=config.run,
        meta=meta,
        preview=preview,
        start_params=common.load_start(config.start_from, "clip"),
    )


def similarity_preview(stage: CLIPStage, batches: common.Batches) -> Preview:
    """Cosines of 16 images (rows) with their captions (columns): a good CLIP shows a diagonal."""

    @jax.jit
    def cosines(params: Params, batch: Batch) -> Array:
        images = to_float(batch[f"image_{stage.spec.image_tower.image_size}"])
        z_i = clip.unit(clip.encode_image(stage.spec, params, images))
        return z_i @ clip.unit(clip.encode_text(stage.spec, params, batch["tokens"]).z_t).T

    examples = functools.cache(lambda: common.first_examples(batches, 16))

    def preview(params: Params, frozen: PyTree, step: int) -> UInt8[np.ndarray, "h w 3"]:
        del frozen, step
        return heat_map(np.asarray(cosines(params, examples())))

    return preview
