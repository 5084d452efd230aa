"""Training an upsampler: P(x_high | x_low) on random crops (2204.06125, section 2.1, after SR3 and 2106.15282).

The low-resolution image is made from the crop itself and degraded by `LowRes`, then enlarged by the same function that
sampling uses on the output of the stage before. Neither CLIP nor captions take part. An upsampler that inpaints is told
the high-resolution image but for a hole, as the decoder is (`unclip_jax.training.stages.decoder`).
"""

import dataclasses
import functools
from collections.abc import Generator
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt8

from unclip_jax.conditioning import drawing_whole
from unclip_jax.core.config import to_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.gaussian import Process, ProcessSpec
from unclip_jax.diffusion.losses import Weighting, loss
from unclip_jax.diffusion.noise import KeyNoise
from unclip_jax.diffusion.samplers import DDIM, sample
from unclip_jax.images.degrade import LowRes
from unclip_jax.images.pixels import grid, to_float, to_uint8
from unclip_jax.models import unet
from unclip_jax.models.unet import UNetCond, UNetSpec
from unclip_jax.parallel.distributed import fetch
from unclip_jax.sharding import unet_rules
from unclip_jax.stages.settings import StageSettings
from unclip_jax.training.checkpoint import Meta
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.loop import train
from unclip_jax.training.stage import Batch, Preview, StageMetrics
from unclip_jax.training.stages import common
from unclip_jax.training.stages.common import READING, Blueprint, DataConfig
from unclip_jax.training.state import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpsamplerConfig:
    """An upsampler run."""

    model: UNetSpec
    """The network; `model.image_size` is the target size."""
    process: ProcessSpec = ProcessSpec()
    """The diffusion over pixels."""
    low_res: LowRes
    """How much smaller the image to start from is, and how training degrades it."""
    data: DataConfig
    """Where images come from."""
    optim: OptimConfig
    """The optimiser."""
    run: RunConfig
    """The run."""
    start_from: str = ""
    """Weights to start from instead of random ones: the workdir of another run, or a bundle."""
    crop_fraction: float = 0.25
    """Side of the training crops over the side of the image."""
    drop_known: float = 0.5
    """Share of examples that train without anything known of the image, where the network inpaints."""
    weighting: Weighting = "none"
    """How timesteps are weighted in the loss."""
    sampling: StageSettings = StageSettings()
    """How a bundle samples this stage where nothing else is asked for."""

    def __post_init__(self) -> None:
        self.sampling.check("sampling", self.process)

    @property
    def crop(self) -> int:
        """Side of the training crops in pixels: a multiple of what network and low resolution ask for."""
        side = round(self.model.image_size * self.crop_fraction)
        multiple = int(np.lcm(self.model.multiple, self.low_res.scale))
        if not 0 < side <= self.model.image_size or side % multiple:
            raise UserError(
                f"crop_fraction {self.crop_fraction} of {self.model.image_size} px gives crops of {side} px; "
                f"choose one that gives a multiple of {multiple}"
            )
        return side


@dataclasses.dataclass(frozen=True)
class UpsamplerStage:
    """The upsampler's loss; it needs nothing frozen."""

    spec: UNetSpec
    process: Process
    low_res: LowRes
    drop_known: float
    weighting: Weighting

    def init(self, key: Key[Array, ""]) -> Params:
        return unet.init_params(self.spec, key)

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], StageMetrics]:
        del frozen
        x_0 = to_float(batch["image_crop"])
        t = common.draw_timesteps(keys, self.process.schedule.num_steps)
        noise = common.draw_noise(keys, x_0.shape[1:])
        x_low = self.low_res.from_high(x_0, common.stream(keys, common.DEGRADE))
        cond = UNetCond(low_res=self.low_res.condition(x_low))
        cond = common.with_holes(self.spec, cond, x_0, keys, self.drop_known)

        def model_fn(x_t: Array, t: Array, cond: UNetCond) -> Array:
            dropout_keys = common.stream(keys, common.DROPOUT)
            return unet.apply(self.spec, params, x_t, t, cond, dropout_keys)

        per_example, terms = loss(self.process, model_fn, x_0, t, noise, cond, weighting=self.weighting)
        return per_example, common.diffusion_metrics(terms, t, self.process.schedule.num_steps)


def blueprint(config: UpsamplerConfig) -> Blueprint:
    """The run that `config` describes."""
    stage = UpsamplerStage(config.model, config.process.build(), config.low_res, config.drop_known, config.weighting)
    batch = config.data.holding(config.model.image_size, crop=config.crop)
    return Blueprint(stage=stage, rules=unet_rules(config.model), batch=batch)


def train_upsampler(config: UpsamplerConfig) -> State:
    """Trains an upsampler; see `unclip_jax.training.loop.train`."""
    source = config.data.open(captions=False)
    plan = blueprint(config)

    def batches(start_step: int) -> Generator[dict[str, np.ndarray], None, None]:
        return config.data.batches(source, None, plan.batch, start_step)

    def whole_images(start_step: int) -> Generator[dict[str, np.ndarray], None, None]:
        return config.data.batches(source, None, dataclasses.replace(plan.batch, crop=None), start_step)

    meta = Meta(
        kind="upsampler",
        config=config,
        extra={"low_res_size": config.model.image_size // config.low_res.scale, "sampling": to_json(config.sampling)},
        may_change=(*READING, "start_from", "sampling.*"),
    )
    stage = cast(UpsamplerStage, plan.stage)
    return train(
        stage,
        {},
        batches,
        rules=plan.rules,
        optim=config.optim,
        run=config.run,
        meta=meta,
        preview=sample_preview(stage, whole_images),
        start_params=common.load_start(config.start_from, "upsampler", spec=config.model),
    )


def sample_preview(stage: UpsamplerStage, whole_images: common.Batches) -> Preview:
    """Four whole images: the condition, what the upsampler makes of it (8 DDIM steps), and the original."""

    @jax.jit
    def draw(params: Params, images: Array) -> tuple[Array, Array]:
        x_0 = to_float(images)
        keys = jax.random.split(jax.random.key(0), len(images))
        condition = stage.low_res.condition(stage.low_res.from_high(x_0, keys))

        def model_fn(x_t: Array, t: Array, cond: UNetCond) -> Array:
            return unet.apply(stage.spec, params, x_t, t, cond)

        noise = KeyNoise(key=jax.random.key(0), indices=jnp.arange(len(images)))
        cond = drawing_whole(stage.spec, UNetCond(low_res=condition), len(images))
        return condition, sample(stage.process, model_fn, cond, DDIM(steps=8), noise, shape=x_0.shape)

    examples = functools.cache(lambda: common.first_examples(whole_images, 4)[f"image_{stage.spec.image_size}"])

    def preview(params: Params, frozen: PyTree, step: int) -> UInt8[np.ndarray, "h w 3"]:
        del frozen, step
        condition, drawn = (to_uint8(fetch(x)) for x in draw(params, examples()))
        return grid(np.concatenate([condition, drawn, examples()]), columns=len(drawn))

    return preview
