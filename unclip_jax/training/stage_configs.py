"""The whole config of a run, one class per role, and the stage that each describes.

`unclip_jax.training.run` uses of any of them what `Config` has; `CONFIGS` maps the kind that a checkpoint names.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from unclip_jax.adapters.lora import LoRAConfig
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import DataclassInstance
from unclip_jax.data.config import DataConfig
from unclip_jax.data.pipeline import BatchSpec
from unclip_jax.diffusion import AnyProcessSpec, ProcessSpec
from unclip_jax.diffusion.process import Weighting
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.base import Denoiser, Network
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.stages.conditions import LowResImage
from unclip_jax.stages.contrastive import ContrastiveStage
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.stage import Stage, array_shape
from unclip_jax.systems import unclip
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.config import OptimConfig, RunConfig, ValidationConfig

Encoders = Mapping[str, Network]
Normalise = Literal["whiten", "scale"]
"""Whitening of z_i by its own mean and deviation in every dimension, or scaling by one deviation."""


@runtime_checkable
class Config(DataclassInstance, Protocol):
    """The interface of a run's config."""

    kind: ClassVar[str]
    """Its name in checkpoints."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def run(self) -> RunConfig: ...
    @property
    def validation(self) -> ValidationConfig: ...
    @property
    def start_from(self) -> str: ...
    @property
    def lora(self) -> LoRAConfig: ...

    def encoder_paths(self) -> dict[str, str]:
        """Return where the frozen networks come from, by name: a run's workdir, or a bundle."""
        ...

    def fitted(self, encoders: Encoders, tokenizer: Tokenizer | None = None) -> "Config":
        """Return the same config with the sizes that networks share taken from the encoders, or the run's own
        tokenizer."""
        ...

    def stage(self) -> Stage:
        """Return what is trained."""
        ...

    def of_weights(self, trained: Stage) -> dict[str, object]:
        """Return the fields that weights of a stage decide, as they have them."""
        ...

    def batch(self, encoders: Encoders, brought: Collection[str] = ()) -> BatchSpec:
        """Describe a training batch, where the data bring `brought`, of z_i and z_t, besides images and captions."""
        ...


def _sizes(encoders: Encoders) -> dict[str, int]:
    return {name: size for network in encoders.values() for name, size in network.shared_sizes().items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """A CLIP run."""

    kind: ClassVar = "clip"

    model: CLIPSpec
    """The towers. `text.vocab_size` is the most tokens the tokenizer may learn."""
    data: DataConfig
    """Where pairs come from."""
    optim: OptimConfig
    """The optimiser."""
    run: RunConfig
    """The run."""
    validation: ValidationConfig = ValidationConfig()
    """What is held out."""
    start_from: str = ""
    """Weights to start from instead of random ones: the workdir of another run, or a bundle. As an option it also makes
    the recipe's network, process, sampling settings and encoders those of the weights."""
    lora: LoRAConfig = LoRAConfig()
    """An adapter of those weights to train in their place."""
    tokenizer: str | None = None
    """Folder of a tokenizer to use; None trains one on the captions."""
    negatives: tuple[str, ...] = ()
    """Groups of words, "left right" "red green blue", that change places in a caption to make hard negatives."""

    def encoder_paths(self) -> dict[str, str]:
        return {}

    def fitted(self, encoders: Encoders, tokenizer: Tokenizer | None = None) -> "CLIPConfig":
        del encoders
        if tokenizer is None:
            return self
        text = dataclasses.replace(self.model.text_tower, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, text=text))

    def stage(self) -> ContrastiveStage:
        return ContrastiveStage(network=self.model)

    def of_weights(self, trained: Stage) -> dict[str, object]:
        return {"model": self.model.of_weights(trained.network)}

    def batch(self, encoders: Encoders, brought: Collection[str] = ()) -> BatchSpec:
        del brought
        stage = self.stage()
        sizes, context = stage.image_sizes(encoders), stage.context(encoders)
        return self.data.batch_spec(sizes, context=context, negatives=self.negatives)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """A prior run."""

    kind: ClassVar = "prior"
    UNTAGGED: ClassVar = {"model": ("network", "prior")}

    model: Denoiser
    """The network. Its embed_dim, text_width, context and vocabulary are taken from the CLIP."""
    process: AnyProcessSpec = ProcessSpec(prediction="x0")
    """The diffusion over embeddings."""
    data: DataConfig
    """Where pairs come from."""
    optim: OptimConfig
    """The optimiser."""
    run: RunConfig
    """The run."""
    validation: ValidationConfig = ValidationConfig()
    """What is held out."""
    clip: str = ""
    """The frozen CLIP: the workdir of a CLIP run, or a bundle."""
    start_from: str = ""
    """Weights to start from instead of random ones: the workdir of another run, or a bundle. As an option it also makes
    the recipe's network, process, sampling settings and encoders those of the weights."""
    lora: LoRAConfig = LoRAConfig()
    """An adapter of those weights to train in their place."""
    normalise: Normalise = "whiten"
    """Whiten every dimension of z_i by its own mean and deviation, or scale all of them by one deviation."""
    stats: Literal["inherit", "measure"] = "inherit"
    """Whether weights to start from keep the statistics of z_i that they know, or these are measured anew. Without
    such weights they are measured; a run that carries on keeps its own."""
    drop_caption: float = 0.1
    """Share of examples that train without their caption, for guidance."""
    weighting: Weighting = "none"
    """Weighting of timesteps in the loss."""
    sampling: SamplingSettings = SamplingSettings()
    """The default sampling settings of this stage in a bundle."""

    def __post_init__(self) -> None:
        self.sampling.check("sampling", self.process)

    def encoder_paths(self) -> dict[str, str]:
        return {"clip": self.clip}

    def fitted(self, encoders: Encoders, tokenizer: Tokenizer | None = None) -> "PriorConfig":
        del tokenizer
        return dataclasses.replace(self, model=self.model.fitted(_sizes(encoders)))

    def stage(self) -> DiffusionStage:
        return unclip.prior_stage(self.model, self.process, drop_caption=self.drop_caption, weighting=self.weighting)

    def of_weights(self, trained: Stage) -> dict[str, object]:
        return _of_weights(self.stage(), trained)

    def batch(self, encoders: Encoders, brought: Collection[str] = ()) -> BatchSpec:
        return _batch(self.stage(), self.data, encoders, brought)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder run."""

    kind: ClassVar = "decoder"
    RENAMED: ClassVar = {"drop_image": "drop_z_i", "drop_known": "full_mask_rate"}
    UNTAGGED: ClassVar = {"model": ("network", "unet")}

    model: Denoiser
    """The network. Its embed_dim and vocabulary (or text_width) are taken from the CLIP."""
    process: AnyProcessSpec = ProcessSpec(variance="learned_range")
    """The diffusion over pixels."""
    data: DataConfig
    """Where pairs come from."""
    optim: OptimConfig
    """The optimiser."""
    run: RunConfig
    """The run."""
    validation: ValidationConfig = ValidationConfig()
    """What is held out."""
    clip: str = ""
    """The frozen CLIP: the workdir of a CLIP run, or a bundle."""
    start_from: str = ""
    """Weights to start from instead of random ones: the workdir of another run, or a bundle. As an option it also makes
    the recipe's network, process, sampling settings and encoders those of the weights."""
    lora: LoRAConfig = LoRAConfig()
    """An adapter of those weights to train in their place."""
    drop_z_i: float = 0.1
    """Share of examples that train without z_i."""
    drop_caption: float = 0.5
    """Share of examples that train without their caption."""
    full_mask_rate: float = 0.5
    """For an inpainting network, share of examples that train with a mask that covers everything."""
    weighting: Weighting = "none"
    """Weighting of timesteps in the loss."""
    sampling: SamplingSettings = SamplingSettings()
    """The default sampling settings of this stage in a bundle."""

    def __post_init__(self) -> None:
        self.sampling.check("sampling", self.process)

    def encoder_paths(self) -> dict[str, str]:
        return {"clip": self.clip}

    def fitted(self, encoders: Encoders, tokenizer: Tokenizer | None = None) -> "DecoderConfig":
        del tokenizer
        return dataclasses.replace(self, model=self.model.fitted(_sizes(encoders)))

    def stage(self) -> DiffusionStage:
        return unclip.decoder_stage(
            self.model,
            self.process,
            drop_z_i=self.drop_z_i,
            drop_caption=self.drop_caption,
            full_mask_rate=self.full_mask_rate,
            weighting=self.weighting,
        )

    def of_weights(self, trained: Stage) -> dict[str, object]:
        return _of_weights(self.stage(), trained)

    def batch(self, encoders: Encoders, brought: Collection[str] = ()) -> BatchSpec:
        return _batch(self.stage(), self.data, encoders, brought)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpsamplerConfig:
    """An upsampler run, on random crops."""

    kind: ClassVar = "upsampler"
    RENAMED: ClassVar = {"drop_known": "full_mask_rate"}
    UNTAGGED: ClassVar = {"model": ("network", "unet")}

    model: Denoiser
    """The network; its image_size is the target size."""
    process: AnyProcessSpec = ProcessSpec()
    """The diffusion over pixels."""
    low_res: LowRes
    """The scale of the image to start from, and its degradation in training."""
    data: DataConfig
    """Where images come from."""
    optim: OptimConfig
    """The optimiser."""
    run: RunConfig
    """The run."""
    validation: ValidationConfig = ValidationConfig()
    """What is held out."""
    start_from: str = ""
    """Weights to start from instead of random ones: the workdir of another run, or a bundle. As an option it also makes
    the recipe's network, process, sampling settings and encoders those of the weights."""
    lora: LoRAConfig = LoRAConfig()
    """An adapter of those weights to train in their place."""
    crop_fraction: float = 0.25
    """Side of the training crops over the side of the image."""
    full_mask_rate: float = 0.5
    """For an inpainting network, share of examples that train with a mask that covers everything."""
    weighting: Weighting = "none"
    """Weighting of timesteps in the loss."""
    sampling: SamplingSettings = SamplingSettings()
    """The default sampling settings of this stage in a bundle."""

    def __post_init__(self) -> None:
        self.sampling.check("sampling", self.process)

    @property
    def crop(self) -> int:
        """Side of the training crops in pixels: a multiple of what network and low resolution need."""
        whole = self.model.sample_shape[0]
        side = round(whole * self.crop_fraction)
        multiple = int(np.lcm(self.model.multiple, self.low_res.scale))
        if not 0 < side <= whole or side % multiple:
            raise UserError(
                f"crop_fraction {self.crop_fraction} of {whole} px gives crops of {side} px; "
                f"choose one that gives a multiple of {multiple}"
            )
        return side

    def encoder_paths(self) -> dict[str, str]:
        return {}

    def fitted(self, encoders: Encoders, tokenizer: Tokenizer | None = None) -> "UpsamplerConfig":
        del encoders, tokenizer
        return self

    def stage(self) -> DiffusionStage:
        return unclip.upsampler_stage(
            self.model, self.process, self.low_res, full_mask_rate=self.full_mask_rate, weighting=self.weighting
        )

    def of_weights(self, trained: Stage) -> dict[str, object]:
        stage = self.stage()
        (low_res,) = (each.low_res for each in stage.of_weights(trained).conditions if isinstance(each, LowResImage))
        return _of_weights(stage, trained) | {"low_res": low_res}

    def batch(self, encoders: Encoders, brought: Collection[str] = ()) -> BatchSpec:
        return _batch(self.stage(), self.data, encoders, brought, crop=self.crop)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A run of any diffusion stage, as it is."""

    kind: ClassVar = "stage"

    trained: DiffusionStage
    """What is trained."""
    data: DataConfig
    """Where examples come from."""
    optim: OptimConfig
    """The optimiser."""
    run: RunConfig
    """The run."""
    validation: ValidationConfig = ValidationConfig()
    """What is held out."""
    clip: str = ""
    """The frozen CLIP, if the stage needs one: the workdir of a CLIP run, or a bundle."""
    start_from: str = ""
    """Weights to start from instead of random ones: the workdir of another run, or a bundle. As an option it also makes
    the recipe's network, process, sampling settings and encoders those of the weights."""
    lora: LoRAConfig = LoRAConfig()
    """An adapter of those weights to train in their place."""
    normalise: Normalise = "whiten"
    """Normalisation of z_i, where the stage works on it."""
    stats: Literal["inherit", "measure"] = "inherit"
    """Whether weights to start from keep the statistics of z_i that they know, or these are measured anew."""
    sampling: SamplingSettings = SamplingSettings()
    """The default sampling settings of this stage in a bundle."""

    def __post_init__(self) -> None:
        self.sampling.check("sampling", self.trained.process)

    def encoder_paths(self) -> dict[str, str]:
        return {name: self.clip for name in self.trained.encoders}

    def fitted(self, encoders: Encoders, tokenizer: Tokenizer | None = None) -> "StageConfig":
        del tokenizer
        network = self.trained.network.fitted(_sizes(encoders))
        assert isinstance(network, Denoiser)
        return dataclasses.replace(self, trained=dataclasses.replace(self.trained, network=network))

    def stage(self) -> DiffusionStage:
        return self.trained

    def of_weights(self, trained: Stage) -> dict[str, object]:
        return {"trained": self.trained.of_weights(trained)}

    def batch(self, encoders: Encoders, brought: Collection[str] = ()) -> BatchSpec:
        return _batch(self.trained, self.data, encoders, brought)


def _of_weights(stage: DiffusionStage, trained: Stage) -> dict[str, object]:
    found = stage.of_weights(trained)
    return {"process": found.process, "model": found.network}


def _batch(
    stage: Stage, data: DataConfig, encoders: Encoders, brought: Collection[str], crop: int | None = None
) -> BatchSpec:
    embeddings = tuple((name, array_shape(name, encoders).shape[0]) for name in brought)
    sizes, context = stage.image_sizes(encoders, brought), stage.context(encoders)
    return data.batch_spec(sizes, crop=crop, context=context, embeddings=embeddings)


CONFIGS: dict[str, type[Config]] = {
    cls.kind: cls for cls in (CLIPConfig, PriorConfig, DecoderConfig, UpsamplerConfig, StageConfig)
}
"""By the kind that a checkpoint names."""
