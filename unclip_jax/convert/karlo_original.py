"""Karlo as its authors released it: three checkpoints, OpenAI's CLIP and the statistics of z_i in one folder.

    prior-ckpt-step=01000000-of-01000000.ckpt        below `model.`
    decoder-ckpt-step=01000000-of-01000000.ckpt      below `model.`, text_proj included
    improved-sr-ckpt-step=1.2M.ckpt                  below `model_first_steps.` and `model_last_step.`
    ViT-L-14.pt, ViT-L-14_stats.th                   CLIP, and (mean, std)

The U-Nets have GLIDE's names: blocks are numbered through, resampling included. Rows of qkv and encoder_kv come head
by head. The files do not say how wide heads are or which levels attend; that is in `Sizes`.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from unclip_jax.convert import open_clip
from unclip_jax.convert.karlo import PRESET
from unclip_jax.convert.layouts import (
    LINEAR,
    Entry,
    Layout,
    conv,
    leading,
    linear,
    norm,
    pointwise,
    regrouped,
    share,
    within,
)
from unclip_jax.convert.mapping import Account, Imported, import_params, imported_system, wanted
from unclip_jax.convert.tensor_files import Below, Tensors, open_file
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems import unclip
from unclip_jax.systems.system import System

PRIOR_FILE = "prior-ckpt-step=01000000-of-01000000.ckpt"
DECODER_FILE = "decoder-ckpt-step=01000000-of-01000000.ckpt"
UPSAMPLER_FILE = "improved-sr-ckpt-step=1.2M.ckpt"
CLIP_FILE, STATS_FILE = "ViT-L-14.pt", "ViT-L-14_stats.th"
PRIOR_LIMIT = 10.0  # The original clamps the prior's x_0 at 10; the hub's configs say 5.

ONE_WIDE = Layout(lambda x: x.reshape(x.shape[:-1]), lambda x: x[..., None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the published configurations say and the checkpoints do not."""

    decoder_size: int = 64
    upsampler_size: int = 256
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    groups: int = 32
    num_image_tokens: int = 4


def import_karlo_original(
    folder: Path, name: str, license: str = "", tokenizer_folder: Path | None = None, sizes: Sizes | None = None
) -> tuple[System, list[Account]]:
    """Import a system from the authors' files. The tokenizer is CLIP's, which is in their code: give its folder."""
    sizes = sizes or Sizes()
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder that the checkpoints are in")
    if tokenizer_folder is None:
        raise UserError("the original checkpoints come without a tokenizer; give the folder of CLIP's with --tokenizer")
    clip, accounts = open_clip.import_open_clip(folder / CLIP_FILE, name, license, tokenizer_folder, "openai")
    stages = {}
    stages["prior"], stats, more = import_prior(folder, sizes)
    stages["decoder"], decoder_account = import_decoder(folder, sizes)
    stages["upsampler_0"], upsampler_accounts = import_upsampler(folder, sizes)
    about = {"name": name, "license": license, "description": "imported from Karlo's original checkpoints"}
    system = imported_system(clip.encoder("clip"), stages, **about, tokenizer=clip.tokenizer, stats=stats)
    return system, [*accounts, *more, *decoder_account, *upsampler_accounts]


def import_prior(folder: Path, sizes: Sizes) -> tuple[Imported, EmbeddingStats, list[Account]]:
    """Import the prior, and the statistics that lie beside it."""
    tensors = Below(open_file(folder / PRIOR_FILE), "model.")
    positions = _shape(tensors, "positional_embedding", 3)
    width = positions[2]
    depth = len({n.split(".")[2] for n in tensors.shapes if n.startswith("transformer.resblocks.")})
    spec = PriorSpec(
        embed_dim=_shape(tensors, "clip_img_proj.weight", 2)[1],
        context=positions[1] - 4,
        text_width=_shape(tensors, "text_enc_proj.weight", 2)[1],
        width=width,
        num_layers=depth,
        num_heads=width // sizes.head_channels,
        null="empty_caption",
    )
    params, accounts = import_params([(tensors, prior_names(spec))], wanted(spec))
    file = open_file(folder / STATS_FILE)
    if sorted(file.shapes) != ["0", "1"] or {file.shapes["0"], file.shapes["1"]} != {(spec.embed_dim,)}:
        raise UserError(f"{file.path} does not hold a mean and a deviation of {spec.embed_dim} numbers; copy it again")
    mean, std = (jnp.asarray(file.read(key), jnp.float32) for key in ("0", "1"))
    stage = unclip.prior_stage(spec, ProcessSpec(prediction="x0", variance="small"))
    settings = dataclasses.replace(PRESET["prior"], limit=PRIOR_LIMIT)
    return Imported(stage, params, settings), EmbeddingStats(mean=mean, std=std), accounts


def prior_names(spec: PriorSpec) -> list[Entry]:
    """Map the names of the prior below `model.`."""
    entries = [
        Entry("positions", "positional_embedding", leading(1)),
        Entry("query", "prd_emb", leading(2)),
        *linear("time/fc", "time_embed.0"),
        *linear("time/proj", "time_embed.2"),
        *linear("z_i_in", "clip_img_proj"),
        *linear("z_t_in", "text_emb_proj"),
        *linear("text_in", "text_enc_proj"),
        *norm("norm_out", "final_ln"),
        *linear("out", "out_proj"),
    ]
    for i in range(spec.num_layers):
        block = [*norm("norm_attention", "ln_1"), *norm("norm_mlp", "ln_2")]
        for third, ours in enumerate(("query", "key", "value")):
            block += linear(f"attention/{ours}", "attn.c_qkv", rows=share(third, 3, spec.num_heads))
        block += linear("attention/out", "attn.c_proj") + linear("fc", "mlp.c_fc") + linear("proj", "mlp.c_proj")
        entries += within(f"transformer/block_{i}/", f"transformer.resblocks.{i}.", block)
    return entries


def import_decoder(folder: Path, sizes: Sizes) -> tuple[Imported, list[Account]]:
    """Import the decoder with its text_proj."""
    tensors = Below(open_file(folder / DECODER_FILE), "model.")
    spec = UNetSpec(
        image_size=sizes.decoder_size,
        channels=_shape(tensors, "input_blocks.0.0.weight", 4)[0],
        channel_mult=sizes.channel_mult,
        num_blocks=sizes.num_blocks,
        learned_sigma=True,
        attention_resolutions=sizes.attention_resolutions,
        head_channels=sizes.head_channels,
        groups=sizes.groups,
        embed_dim=_shape(tensors, "clip_emb.weight", 2)[1],
        num_image_tokens=sizes.num_image_tokens,
        context_width=_shape(tensors, "text_seq_proj.0.weight", 2)[0],
        text_width=_shape(tensors, "text_seq_proj.0.weight", 2)[1],
        null="empty_caption",
    )
    entries = unet_names(spec) + text_proj_names(spec)
    params, accounts = import_params([(tensors, entries)], wanted(spec))
    stage = unclip.decoder_stage(spec, ProcessSpec(variance="learned_range"))
    return Imported(stage, params, PRESET["decoder"]), accounts


def import_upsampler(folder: Path, sizes: Sizes) -> tuple[Imported, list[Account]]:
    """Import both super-resolution networks as experts of one network; the one for the last step acts at t = 0."""
    file = open_file(folder / UPSAMPLER_FILE)
    networks = [Below(file, "model_last_step."), Below(file, "model_first_steps.")]
    spec = UNetSpec(
        image_size=sizes.upsampler_size,
        channels=_shape(networks[0], "input_blocks.0.0.weight", 4)[0],
        channel_mult=sizes.channel_mult,
        num_blocks=sizes.num_blocks,
        learned_sigma=False,
        conditioning="additive",
        groups=sizes.groups,
        low_res=True,
    )
    network = TimestepExperts(expert=spec, boundaries=(1.0,))
    sources = [(tensors, within(f"expert_{i}/", "", unet_names(spec))) for i, tensors in enumerate(networks)]
    params, accounts = import_params(sources, wanted(network))
    low_res = LowRes(scale=sizes.upsampler_size // sizes.decoder_size)
    return Imported(unclip.upsampler_stage(network, ProcessSpec(), low_res), params, PRESET["upsampler_0"]), accounts


def unet_names(spec: UNetSpec) -> list[Entry]:
    """Map the names of a U-Net in GLIDE's numbering: what follows a ResBlock, attention or upsampling, shares its
    number."""
    entries = [
        *linear("conditioner/time/fc", "time_embed.0"),
        *linear("conditioner/time/proj", "time_embed.2"),
        *conv("conv_in", "input_blocks.0.0"),
        *norm("norm_out", "out.0"),
        *conv("conv_out", "out.2"),
    ]
    sequence, number, place = "input_blocks", 0, 0
    for block in spec.blocks():
        if block.place == "middle":
            number = number + 1 if sequence == "middle_block" else 0
            sequence, theirs = "middle_block", f"middle_block.{number}"
        else:
            if block.kind == "res" or (block.kind == "resample" and block.place == "down"):
                number, place = (0 if sequence == "middle_block" else number + 1), 0
            else:
                place += 1
            sequence = "input_blocks" if block.place == "down" else "output_blocks"
            theirs = f"{sequence}.{number}.{place}"
        if block.kind == "attention":
            entries += _attention(block.name, theirs, block.width // spec.head_channels)
        else:
            entries += _res_block(block.name, theirs, block.changes_width)
    return entries


def text_proj_names(spec: UNetSpec) -> list[Entry]:
    """Map the names of what the decoder does with z_i and the caption before its U-Net."""
    return within(
        "conditioner/",
        "",
        [
            Entry("null_z_i", "cf_param"),
            *linear("text_embedding", "text_feat_proj"),
            *linear("z_i_embedding", "clip_emb"),
            *linear("z_i_tokens", "clip_tok_proj", rows=regrouped(None, spec.num_image_tokens)),
            *linear("text_in", "text_seq_proj.0"),
            *norm("text_norm", "text_seq_proj.1"),
        ],
    )


def _res_block(ours: str, theirs: str, has_skip: bool) -> list[Entry]:
    block = [
        *norm("norm_in", "in_layers.0"),
        *conv("conv_in", "in_layers.2"),
        *linear("embedding", "emb_layers.1"),
        *norm("norm_out", "out_layers.0"),
        *conv("conv_out", "out_layers.3"),
        *(pointwise("skip", "skip_connection") if has_skip else []),
    ]
    return within(f"{ours}/", f"{theirs}.", block)


def _attention(ours: str, theirs: str, heads: int) -> list[Entry]:
    """Map the names of attention, whose convolutions over a sequence have weights with a third axis of length 1."""
    block = norm("norm", "norm")
    fused = [("qkv", i, 3, name) for i, name in enumerate(("query", "key", "value"))]
    fused += [("encoder_kv", i, 2, name) for i, name in enumerate(("context_key", "context_value"))]
    for tensor, index, count, name in fused:
        rows = share(index, count, heads)
        block.append(Entry(f"{name}/kernel", f"{tensor}.weight", ONE_WIDE.then(rows).then(LINEAR)))
        block.append(Entry(f"{name}/bias", f"{tensor}.bias", rows))
    block += [Entry("out/kernel", "proj_out.weight", ONE_WIDE.then(LINEAR)), Entry("out/bias", "proj_out.bias")]
    return within(f"{ours}/", f"{theirs}.", block)


def _shape(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    shape = tensors.shapes.get(name, ())
    if len(shape) != rank:
        raise UserError(f"{tensors.path}: tensor {name} is missing or misshapen; this is no checkpoint of Karlo's")
    return shape
