"""The PyTorch side: Karlo's pipelines of diffusers with seeded random weights, at sizes that run in seconds."""

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


def karlo(folder: Path) -> UnCLIPPipeline:
    """A whole pipeline, every part with every feature of the real one."""
    names = tokenizer(folder / "tokenizer")
    decoder = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        cross_attention_dim=48,
        attention_head_dim=16,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )

    def super_res() -> UNet2DModel:
        return UNet2DModel(
            sample_size=32,
            in_channels=6,
            out_channels=3,
            down_block_types=("ResnetDownsampleBlock2D",) * 3,
            up_block_types=("ResnetUpsampleBlock2D",) * 3,
            block_out_channels=(32, 64, 96),
            layers_per_block=2,
            add_attention=False,
            resnet_time_scale_shift="default",
        )

    parts = {
        "prior": PriorTransformer(
            num_attention_heads=4, attention_head_dim=12, num_layers=3, embedding_dim=32, num_embeddings=CONTEXT
        ),
        "decoder": decoder,
        "text_encoder": CLIPTextModelWithProjection(text_config(len(names))),
        "text_proj": UnCLIPTextProjModel(
            clip_embeddings_dim=32, time_embed_dim=128, cross_attention_dim=48, clip_extra_context_tokens=4
        ),
        "super_res_first": super_res(),
        "super_res_last": super_res(),
    }
    pipeline = UnCLIPPipeline(
        **{name: fill(part, name) for name, part in parts.items()},
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
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
    )
    varied.set_progress_bar_config(disable=True)
    return varied
