"""The PyTorch side: Karlo's pipelines of diffusers with seeded random weights, at sizes that run in seconds."""

import dataclasses
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import (
    PriorTransformer,
    UnCLIPImageVariationPipeline,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tests.convert.tokenizer import CONTEXT, write_clip_tokenizer
from tests.parity.weights import weight

T = TypeVar("T", bound=torch.nn.Module)


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's kind of tokenizer, padded with "!" as Karlo's is."""
    write_clip_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(str(folder))


def fill(module: T, name: str) -> T:
    """Gives a module the weights that belong to `name`."""
    with torch.no_grad():
        for key, value in module.named_parameters():
            value.copy_(torch.from_numpy(weight(f"{name}.{key}", tuple(value.shape))))
    return module.eval()


def text_config(vocab_size: int, **changes) -> CLIPTextConfig:
    """A small text tower in the style of ViT-L/14's: quick GELU, the old end-of-text id."""
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 128,
        "projection_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "quick_gelu",
        "eos_token_id": 2,
        "bos_token_id": 0,
        "pad_token_id": 1,
    }
    return CLIPTextConfig(**settings | changes)


def vision_config(**changes) -> CLIPVisionConfig:
    """A small image tower, its MLP as wide as bigG/14's is: not four times the tower."""
    settings = {
        "hidden_size": 48,
        "intermediate_size": 160,
        "projection_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "hidden_act": "quick_gelu",
    }
    return CLIPVisionConfig(**settings | changes)


def clip(vocab_size: int, hidden_act: str, eos_token_id: int) -> CLIPModel:
    """Both towers and the logit scale."""
    text = text_config(vocab_size, hidden_act=hidden_act, eos_token_id=eos_token_id)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision_config(hidden_act=hidden_act).to_dict(), projection_dim=32
    )
    return fill(CLIPModel(config), "clip")


def image_processor(size: int) -> CLIPImageProcessor:
    """What prepares images for a tower of that size."""
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What makes a Karlo large: the defaults run in seconds on one core."""

    embed_dim: int = 32
    text_heads: int = 4
    text_layers: int = 2
    prior_heads: int = 4
    prior_head_dim: int = 12
    prior_layers: int = 3
    channels: tuple[int, ...] = (32, 64, 96)
    layers_per_block: int = 2
    context_width: int = 48
    head_channels: int = 16
    decoder_size: int = 16
    upsampler_channels: tuple[int, ...] = (32, 64, 96)
    upsampler_size: int = 32


SMALL = Size()
MID = Size(
    embed_dim=768,
    text_heads=12,
    text_layers=6,
    prior_heads=16,
    prior_head_dim=64,
    prior_layers=10,
    channels=(128, 256, 384, 512),
    context_width=768,
    head_channels=64,
    decoder_size=64,
    upsampler_channels=(64, 128, 192, 256),
    upsampler_size=128,
)
"""A tenth of the real one's parameters, with its head width and its depth of levels."""

FULL = Size(
    embed_dim=768,
    text_heads=12,
    text_layers=12,
    prior_heads=32,
    prior_head_dim=64,
    prior_layers=20,
    channels=(320, 640, 960, 1280),
    layers_per_block=3,
    context_width=1536,
    head_channels=64,
    decoder_size=64,
    upsampler_channels=(320, 640, 960, 1280),
    upsampler_size=256,
)
"""The published sizes: 1.02 B parameters in the prior, 0.885 B in the decoder, 0.69 B twice in the upsampler."""


def text_encoder(vocab_size: int, size: Size = SMALL) -> CLIPTextModelWithProjection:
    """CLIP's text tower."""
    config = text_config(
        vocab_size,
        hidden_size=size.embed_dim,
        intermediate_size=4 * size.embed_dim,
        projection_dim=size.embed_dim,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_heads,
    )
    return fill(CLIPTextModelWithProjection(config), "text_encoder")


def prior(size: Size = SMALL) -> PriorTransformer:
    """The prior alone."""
    network = PriorTransformer(
        num_attention_heads=size.prior_heads,
        attention_head_dim=size.prior_head_dim,
        num_layers=size.prior_layers,
        embedding_dim=size.embed_dim,
        num_embeddings=CONTEXT,
    )
    return fill(network, "prior")


def decoder(size: Size = SMALL) -> UNet2DConditionModel:
    """The decoder's U-Net alone; all levels but the first attend."""
    levels = len(size.channels)
    network = UNet2DConditionModel(
        sample_size=size.decoder_size,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * (levels - 1)),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*("SimpleCrossAttnUpBlock2D",) * (levels - 1), "ResnetUpsampleBlock2D"),
        block_out_channels=size.channels,
        layers_per_block=size.layers_per_block,
        cross_attention_dim=size.context_width,
        attention_head_dim=size.head_channels,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    return fill(network, "decoder")


def text_proj(size: Size = SMALL) -> UnCLIPTextProjModel:
    """What prepares the decoder's conditions."""
    network = UnCLIPTextProjModel(
        clip_embeddings_dim=size.embed_dim,
        time_embed_dim=4 * size.channels[0],
        cross_attention_dim=size.context_width,
        clip_extra_context_tokens=4,
    )
    return fill(network, "text_proj")


def super_res(name: str, size: Size = SMALL) -> UNet2DModel:
    """One of the two super-resolution networks."""
    levels = len(size.upsampler_channels)
    network = UNet2DModel(
        sample_size=size.upsampler_size,
        in_channels=6,
        out_channels=3,
        down_block_types=("ResnetDownsampleBlock2D",) * levels,
        up_block_types=("ResnetUpsampleBlock2D",) * levels,
        block_out_channels=size.upsampler_channels,
        layers_per_block=size.layers_per_block,
        add_attention=False,
        resnet_time_scale_shift="default",
    )
    return fill(network, name)


def karlo(folder: Path, size: Size = SMALL) -> UnCLIPPipeline:
    """A whole pipeline, every part with every feature of the real one."""
    names = tokenizer(folder / "tokenizer")
    pipeline = UnCLIPPipeline(
        prior=prior(size),
        decoder=decoder(size),
        text_encoder=text_encoder(len(names), size),
        text_proj=text_proj(size),
        super_res_first=super_res("super_res_first", size),
        super_res_last=super_res("super_res_last", size),
        tokenizer=names,
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def karlo_variation(pipeline: UnCLIPPipeline) -> UnCLIPImageVariationPipeline:
    """Its sibling for image variations: an image tower instead of the prior."""
    tower = fill(CLIPVisionModelWithProjection(vision_config()), "image_encoder")
    size = tower.config.image_size
    shared = ("decoder", "text_encoder", "tokenizer", "text_proj", "super_res_first", "super_res_last")
    varied = UnCLIPImageVariationPipeline(
        **{name: getattr(pipeline, name) for name in (*shared, "decoder_scheduler", "super_res_scheduler")},
        image_encoder=tower,
        feature_extractor=image_processor(size),
    )
    varied.set_progress_bar_config(disable=True)
    return varied
