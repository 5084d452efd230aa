"""Training the decoder: P(x | z_i, y) at the base resolution (2204.06125, section 2.1).

z_i comes from a frozen CLIP, of the same image at CLIP's own resolution. For guidance z_i is dropped for `drop_image`
of the examples and the caption, independently, for `drop_caption` of them. A decoder that inpaints is told the image
but for a hole (`unclip_jax.images.masks`), or nothing of it for `drop_known` of the examples, which keeps it a decoder.
"""

import dataclasses
import functools
from collections.abc import Generator
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt8

from unclip_jax.conditioning import decoder_cond, drawing_whole, known_part
from unclip_jax.core.config import to_json
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.gaussian import Process, ProcessSpec
from unclip_jax.diffusion.losses import Weighting, loss
from unclip_jax.diffusion.noise import KeyNoise
from unclip_jax.diffusion.samplers import DDIM, sample
from unclip_jax.images.masks import draw_holes
from unclip_jax.images.pixels import grid, to_float, to_uint8
from unclip_jax.models import clip, unet
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.unet import UNetCond, UNetSpec
from unclip_jax.parallel.distributed import fetch
from unclip_jax.sharding import unet_rules
from unclip_jax.stages.settings import StageSettings
from unclip_jax.training.checkpoint import Meta
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.loop import train
from unclip_jax.training.stage import Batch, Preview, StageMetrics
from unclip_jax.training.stages import common
from unclip_jax.training.stages.common import READING, Blueprint, DataConfig, FrozenCLIP
from unclip_jax.training.state import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder run."""

    model: UNetSpec
    """The network. Its embed_dim and vocabulary (or text_width) are taken from the CLIP."""
    process: ProcessSpec = ProcessSpec(variance="learned_range")
    """The diffusion over pixels."""
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
    drop_image: float = 0.1
    """Share of examples that train without z_i."""
    drop_caption: float = 0.5
    """Share of examples that train without their caption."""
    drop_known: float = 0.5
    """Share of examples that train without anything known of the image, where the network inpaints."""
    weighting: Weighting = "none"
    """How timesteps are weighted in the loss."""
    sampling: StageSettings = StageSettings()
    """How a bundle samples this stage where nothing else is asked for."""

    def __post_init__(self) -> None:
        self.sampling.check("sampling", self.process)


@dataclasses.dataclass(frozen=True)
class DecoderStage:
    """The decoder's loss. `frozen` is {"clip": parameters}."""

    spec: UNetSpec
    process: Process
    clip_spec: CLIPSpec
    drop_image: float
    drop_caption: float
    drop_known: float
    weighting: Weighting

    def init(self, key: Key[Array, ""]) -> Params:
        return unet.init_params(self.spec, key)

    def encode(self, frozen: PyTree, batch: Batch) -> UNetCond:
        """What the decoder is told about the images of a batch, nothing dropped."""
        images = to_float(batch[f"image_{self.clip_spec.image_tower.image_size}"])
        z_i = clip.encode_image(self.clip_spec, frozen["clip"], images)
        return decoder_cond(self.spec, self.clip_spec, frozen["clip"], z_i, batch["tokens"], batch["mask"])

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], StageMetrics]:
        x_0 = to_float(batch[f"image_{self.spec.image_size}"])
        t = common.draw_timesteps(keys, self.process.schedule.num_steps)
        noise = common.draw_noise(keys, x_0.shape[1:])
        cond = self.encode(frozen, batch)
        cond = dataclasses.replace(
            cond,
            drop_image=common.draw_drop(keys, self.drop_image, common.DROP_IMAGE),
            drop_text=None
            if cond.drop_text is None
            else common.draw_drop(keys, self.drop_caption, common.DROP_CAPTION),
        )
        cond = common.with_holes(self.spec, cond, x_0, keys, self.drop_known)

        def model_fn(x_t: Array, t: Array, cond: UNetCond) -> Array:
            dropout_keys = common.stream(keys, common.DROPOUT)
            return unet.apply(self.spec, params, x_t, t, cond, dropout_keys)

        per_example, terms = loss(self.process, model_fn, x_0, t, noise, cond, weighting=self.weighting)
        return per_example, common.diffusion_metrics(terms, t, self.process.schedule.num_steps)


def fitted(config: DecoderConfig, clip_spec: CLIPSpec) -> DecoderConfig:
    """`config` with what its network takes from the CLIP."""
    own = config.model
    width = None if own.text_width is None else clip_spec.text_tower.width
    text = common.reading(own.text, clip_spec)
    model = dataclasses.replace(own, embed_dim=clip_spec.embed_dim, text=text, text_width=width)
    return dataclasses.replace(config, model=model)


def blueprint(config: DecoderConfig, clip_spec: CLIPSpec) -> Blueprint:
    """The run that `config` describes under a CLIP of that spec."""
    spec = config.model
    stage = DecoderStage(
        spec,
        config.process.build(),
        clip_spec,
        config.drop_image,
        config.drop_caption,
        config.drop_known,
        config.weighting,
    )
    sizes = spec.image_size, clip_spec.image_tower.image_size
    batch = config.data.holding(*sizes, context=clip_spec.text_tower.context)
    return Blueprint(stage=stage, rules=unet_rules(spec), batch=batch, clip_spec=clip_spec)


def train_decoder(config: DecoderConfig) -> State:
    """Trains a decoder under a frozen CLIP; see `unclip_jax.training.loop.train`."""
    frozen_clip = FrozenCLIP.load(config.clip)
    clip_spec = frozen_clip.spec
    config = fitted(config, clip_spec)
    plan = blueprint(config, clip_spec)
    source = config.data.open(captions=True)

    def batches(start_step: int) -> Generator[dict[str, np.ndarray], None, None]:
        return config.data.batches(source, frozen_clip.tokenizer, plan.batch, start_step)

    meta = Meta(
        kind="decoder",
        config=config,
        extra={
            "tokenizer": to_json(frozen_clip.tokenizer),
            "clip_identity": frozen_clip.identity,
            "sampling": to_json(config.sampling),
        },
        may_change=(*READING, "clip", "start_from", "sampling.*"),
        must_match=("clip_identity", "tokenizer"),
    )
    frozen = {"clip": frozen_clip.params}
    stage = cast(DecoderStage, plan.stage)
    return train(
        stage,
        frozen,
        batches,
        rules=plan.rules,
        frozen_rules=plan.frozen_rules,
        optim=config.optim,
        run=config.run,
        meta=meta,
        preview=sample_preview(stage, batches),
        start_params=common.load_start(config.start_from, "decoder", spec=config.model),
    )


def sample_preview(stage: DecoderStage, batches: common.Batches) -> Preview:
    """Eight real images above what the decoder draws from their z_i and captions (16 DDIM steps, no guidance). If it
    inpaints, two rows more: the images with a hole, and how it fills that.
    """
    size = stage.spec.image_size

    @jax.jit
    def draw(params: Params, frozen: PyTree, batch: Batch) -> Array:
        x_0 = to_float(batch[f"image_{size}"])
        cond = drawing_whole(stage.spec, stage.encode(frozen, batch), len(x_0))
        shape = x_0.shape
        if stage.spec.inpaints:
            hole = draw_holes(jax.random.split(jax.random.key(1), len(x_0)), size, whole=0.0)
            with_hole = dataclasses.replace(cond, known=known_part(x_0, hole))
            cond = jax.tree.map(lambda *both: jnp.concatenate(both), cond, with_hole)
            shape = 2 * len(x_0), *shape[1:]

        def model_fn(x_t: Array, t: Array, cond: UNetCond) -> Array:
            return unet.apply(stage.spec, params, x_t, t, cond)

        noise = KeyNoise(key=jax.random.key(0), indices=jnp.arange(shape[0]))
        drawn = sample(stage.process, model_fn, cond, DDIM(steps=16), noise, shape=shape)
        if not stage.spec.inpaints:
            return drawn
        whole, filled = drawn[: len(x_0)], drawn[len(x_0) :]
        hole = hole[..., None]
        return jnp.concatenate([whole, jnp.where(hole, 0.0, x_0), jnp.where(hole, filled, x_0)])

    examples = functools.cache(lambda: common.first_examples(batches, 8))

    def preview(params: Params, frozen: PyTree, step: int) -> UInt8[np.ndarray, "h w 3"]:
        del step
        real = np.asarray(examples()[f"image_{size}"])
        drawn = to_uint8(fetch(draw(params, frozen, examples())))
        return grid(np.concatenate([real, drawn]), columns=len(real))

    return preview
