"""The PyTorch side: Karlo's pipelines of diffusers with seeded random weights, at sizes that run in seconds."""

import json
from pathlib import Path

import torch
from diffusers import PriorTransformer, UnCLIPPipeline, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

CONTEXT = 77
WORDS = ("red", "green", "blue", "circle", "square", "above", "below", "left", "right", "the", "photo", "of")


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's format: its alphabet, a few words, and "!" to pad with, as Karlo has it."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = ["!", *sorted(set(ByteLevel.alphabet()) - {"!"})]
    tokens, merges = [*alphabet, *(f"{letter}</w>" for letter in alphabet)], []
    for word in WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], 1):
            right = letter if i < len(word) - 1 else f"{letter}</w>"
            if (pair := f"{left} {right}") not in merges:
                merges.append(pair)
            left += right
            if left not in tokens:
                tokens.append(left)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = special | {"pad_token": "!", "model_max_length": CONTEXT, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(str(folder))


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that leave no term out: what is initialised to zeros or ones becomes something else too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("clip_std"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim < 2 and "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.1 * noise)
            elif value.ndim < 2:
                value.copy_(0.1 * noise)
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    return module.eval()


def karlo(folder: Path) -> UnCLIPPipeline:
    """A whole pipeline, every part with every feature of the real one."""
    names = tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=128,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        hidden_act="quick_gelu",
        eos_token_id=2,
        bos_token_id=0,
        pad_token_id=1,
    )
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
        "text_encoder": CLIPTextModelWithProjection(text),
        "text_proj": UnCLIPTextProjModel(
            clip_embeddings_dim=32, time_embed_dim=128, cross_attention_dim=48, clip_extra_context_tokens=4
        ),
        "super_res_first": super_res(),
        "super_res_last": super_res(),
    }
    pipeline = UnCLIPPipeline(
        **{name: randomise(part, seed) for seed, (name, part) in enumerate(parts.items())},
        tokenizer=names,
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
