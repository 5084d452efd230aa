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

from unclip_jax.core.config import to_json
from unclip_jax.core.typing import Params
from unclip_jax.images.pixels import to_float
from unclip_jax.models import clip
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.parallel.distributed import fetch
from unclip_jax.parallel.layout import all_rows, row_numbers
from unclip_jax.sharding import transformer_rules
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.checkpoint import Meta
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.loop import train
from unclip_jax.training.preview import heat_map
from unclip_jax.training.stage import Batch, Preview, StageMetrics
from unclip_jax.training.stages import common
from unclip_jax.training.stages.common import READING, Blueprint, DataConfig
from unclip_jax.training.state import State

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
        z_i = clip.unit(clip.encode_image(self.spec, params, images))
        scale = jnp.exp(jnp.minimum(params["logit_scale"], clip.MAX_LOGIT_SCALE))

        def embed(tokens: Array) -> Array:
            return clip.unit(clip.encode_text(self.spec, params, tokens).z_t)

        z_t = embed(batch["tokens"])
        # Each row meets every row of the global batch, wherever that lies; its own is where it stands there.
        rows = jnp.arange(len(z_i))
        own, ones, metrics = row_numbers(len(z_i)), jnp.ones(len(z_i)), {}
        of_images, of_texts = scale * z_i @ all_rows(z_t).T, scale * z_t @ all_rows(z_i).T
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


def blueprint(config: CLIPConfig) -> Blueprint:
    """The run that `config` describes, once its tokenizer is known."""
    spec = config.model
    batch = config.data.holding(
        spec.image_tower.image_size, context=spec.text_tower.context, negatives=config.negatives
    )
    return Blueprint(stage=CLIPStage(spec), rules=transformer_rules(spec), batch=batch)


def train_clip(config: CLIPConfig) -> State:
    """Trains a tokenizer (unless one is given) and a CLIP; see `unclip_jax.training.loop.train`."""
    source = config.data.open(captions=True)
    if config.tokenizer is None:
        count = min(len(source), TOKENIZER_CAPTIONS)
        captions = (source[i].caption for i in np.linspace(0, len(source) - 1, count).astype(int).tolist())
        tokenizer = Tokenizer.train(captions, config.model.text_tower.vocab_size)
    else:
        tokenizer = Tokenizer.from_file(config.tokenizer)
    text = dataclasses.replace(config.model.text_tower, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
    plan = blueprint(config)

    def batches(start_step: int) -> Generator[dict[str, np.ndarray], None, None]:
        return config.data.batches(source, tokenizer, plan.batch, start_step)

    meta = Meta(
        kind="clip",
        config=config,
        extra={"tokenizer": to_json(tokenizer)},
        may_change=(*READING, "start_from"),
        must_match=("tokenizer",),
    )
    return train(
        plan.stage,
        {},
        batches,
        rules=plan.rules,
        frozen_rules=plan.frozen_rules,
        optim=config.optim,
        run=config.run,
        meta=meta,
        preview=similarity_preview(config.model, batches),
        start_params=common.load_start(config.start_from, "clip"),
    )


def similarity_preview(spec: CLIPSpec, batches: common.Batches) -> Preview:
    """Cosines of 16 images (rows) with their captions (columns): a good CLIP shows a diagonal."""

    @jax.jit
    def cosines(params: Params, batch: Batch) -> Array:
        images = to_float(batch[f"image_{spec.image_tower.image_size}"])
        z_i = clip.unit(clip.encode_image(spec, params, images))
        return z_i @ clip.unit(clip.encode_text(spec, params, batch["tokens"]).z_t).T

    examples = functools.cache(lambda: common.first_examples(batches, 16))

    def preview(params: Params, frozen: PyTree, step: int) -> UInt8[np.ndarray, "h w 3"]:
        del frozen, step
        return heat_map(fetch(cosines(params, examples())))

    return preview
