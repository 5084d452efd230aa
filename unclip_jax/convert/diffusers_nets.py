"""The networks of unCLIP as diffusers has them: `PriorTransformer`, `UnCLIPTextProjModel` and the two U-Net classes.

`UnCLIPTextProjModel` holds what our decoder does with z_i and the caption before its U-Net, so the two of
them are one network here. Its four image tokens have the token as the fastest axis, where ours has the channel.
"""

from unclip_jax.convert.config_files import Config, expect, field, fields
from unclip_jax.convert.layouts import SAME, Entry, conv, leading, linear, norm, pointwise, regrouped, within
from unclip_jax.core.errors import UserError
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec

PLAIN_DOWN, ATTENDING_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
PLAIN_UP, ATTENDING_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"
ATTENDING_MIDDLE = "UNetMidBlock2DSimpleCrossAttn"


def prior_spec(config: Config, where: str) -> PriorSpec:
    """Translate the config of a `PriorTransformer` to ours."""
    expect(
        config,
        where,
        _class_name="PriorTransformer",
        additional_embeddings=4,
        dropout=0.0,
        time_embed_act_fn="silu",
        norm_in_type=None,
        embedding_proj_norm_type=None,
        encoder_hid_proj_type="linear",
        added_emb_type="prd",
        time_embed_dim=None,
        embedding_proj_dim=None,
        clip_embed_dim=None,
    )
    names = ("embedding_dim", "num_embeddings", "num_attention_heads", "attention_head_dim", "num_layers")
    embed_dim, context, heads, head_dim, depth = fields(config, names, int, where)
    return PriorSpec(
        embed_dim=embed_dim,
        context=context,
        text_width=embed_dim,
        width=heads * head_dim,
        num_layers=depth,
        num_heads=heads,
        null="empty_caption",
    )


STATS = (Entry("mean", "clip_mean", leading(1)), Entry("std", "clip_std", leading(1)))


def prior_names(spec: PriorSpec) -> list[Entry]:
    """Map the names of a `PriorTransformer`, without the statistics of z_i that it keeps beside its weights."""
    entries = [
        Entry("positions", "positional_embedding", leading(1)),
        Entry("query", "prd_embedding", leading(2)),
        *linear("time/fc", "time_embedding.linear_1"),
        *linear("time/proj", "time_embedding.linear_2"),
        *linear("z_i_in", "proj_in"),
        *linear("z_t_in", "embedding_proj"),
        *linear("text_in", "encoder_hidden_states_proj"),
        *norm("norm_out", "norm_out"),
        *linear("out", "proj_to_clip_embeddings"),
    ]
    for i in range(spec.num_layers):
        block = norm("norm_attention", "norm1") + norm("norm_mlp", "norm3")
        block += attention("attention", "attn1")
        block += linear("fc", "ff.net.0.proj") + linear("proj", "ff.net.2")
        entries += within(f"transformer/block_{i}/", f"transformer_blocks.{i}.", block)
    return entries


def attention(ours: str, theirs: str) -> list[Entry]:
    """Map the names of query, key, value and output."""
    pairs = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("out", "to_out.0"))
    return [entry for mine, their in pairs for entry in linear(f"{ours}/{mine}", f"{theirs}.{their}")]


def decoder_spec(config: Config, where: str, projection: Config, projection_where: str, text_width: int) -> UNetSpec:
    """Translate the configs of a decoder's `UNet2DConditionModel` and of its `UnCLIPTextProjModel` to ours."""
    attending = _levels(config, where, (PLAIN_DOWN, ATTENDING_DOWN), (PLAIN_UP, ATTENDING_UP))
    expect(
        config,
        where,
        _class_name="UNet2DConditionModel",
        in_channels=3,
        out_channels=6,
        mid_block_type=ATTENDING_MIDDLE,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
        only_cross_attention=False,
        cross_attention_norm=None,
        encoder_hid_dim=None,
        addition_embed_type=None,
        time_embedding_type="positional",
        conv_in_kernel=3,
        conv_out_kernel=3,
        resnet_skip_time_act=False,
        resnet_out_scale_factor=1.0,
    )
    names = ("sample_size", "layers_per_block", "attention_head_dim", "cross_attention_dim")
    size, depth, head_channels, context_width = fields(config, names, int, where)
    channels, channel_mult = _channels(config, where)
    embed_dim = field(projection, "clip_embeddings_dim", int, projection_where)
    expect(projection, projection_where, cross_attention_dim=context_width, time_embed_dim=4 * channels)
    return UNetSpec(
        image_size=size,
        channels=channels,
        channel_mult=channel_mult,
        num_blocks=depth,
        learned_sigma=True,
        attention_resolutions=tuple(size // 2**level for level, attends in enumerate(attending) if attends),
        head_channels=head_channels,
        groups=field(config, "norm_num_groups", int, where, 32),
        embed_dim=embed_dim,
        num_image_tokens=field(projection, "clip_extra_context_tokens", int, projection_where, 4),
        context_width=context_width,
        text_width=text_width,
        null="empty_caption",
    )


def upsampler_spec(config: Config, where: str) -> UNetSpec:
    """Translate the config of a super-resolution `UNet2DModel` to ours."""
    _levels(config, where, (PLAIN_DOWN,), (PLAIN_UP,))
    expect(
        config,
        where,
        _class_name="UNet2DModel",
        in_channels=6,
        out_channels=3,
        add_attention=False,
        resnet_time_scale_shift="default",
        class_embed_type=None,
        time_embedding_type="positional",
        center_input_sample=False,
    )
    size, depth = fields(config, ("sample_size", "layers_per_block"), int, where)
    channels, channel_mult = _channels(config, where)
    return UNetSpec(
        image_size=size,
        channels=channels,
        channel_mult=channel_mult,
        num_blocks=depth,
        learned_sigma=False,
        conditioning="additive",
        groups=field(config, "norm_num_groups", int, where, 32),
        low_res=True,
    )


def unet_names(spec: UNetSpec) -> list[Entry]:
    """Map the names of a U-Net of either class."""
    last = len(spec.channel_mult) - 1
    entries = [
        *conv("conv_in", "conv_in"),
        *linear("conditioner/time/fc", "time_embedding.linear_1"),
        *linear("conditioner/time/proj", "time_embedding.linear_2"),
        *norm("norm_out", "conv_norm_out"),
        *conv("conv_out", "conv_out"),
    ]
    for block in spec.blocks():
        match block.place:
            case "down":
                theirs, resampler = f"down_blocks.{block.level}", "downsamplers.0"
            case "middle":
                theirs, resampler = "mid_block", ""
            case "up":
                theirs, resampler = f"up_blocks.{last - block.level}", "upsamplers.0"
        match block.kind:
            case "res":
                entries += _res_block(block.name, f"{theirs}.resnets.{block.index}", block.changes_width)
            case "attention":
                entries += _context_attention(block.name, f"{theirs}.attentions.{block.index}")
            case "resample":
                entries += _res_block(block.name, f"{theirs}.{resampler}", block.changes_width)
    return entries


def text_proj_names(spec: UNetSpec) -> list[Entry]:
    """Map the names of an `UnCLIPTextProjModel`, which is the rest of our decoder's conditioner."""
    return within(
        "conditioner/",
        "",
        [
            Entry("null_z_i", "learned_classifier_free_guidance_embeddings", SAME),
            *linear("text_embedding", "embedding_proj"),
            *linear("z_i_embedding", "clip_image_embeddings_project_to_time_embeddings"),
            *linear("z_i_tokens", "clip_extra_context_tokens_proj", rows=regrouped(None, spec.num_image_tokens)),
            *linear("text_in", "encoder_hidden_states_proj"),
            *norm("text_norm", "text_encoder_hidden_states_norm"),
        ],
    )


def _res_block(ours: str, theirs: str, has_skip: bool) -> list[Entry]:
    block = [
        *norm("norm_in", "norm1"),
        *conv("conv_in", "conv1"),
        *linear("embedding", "time_emb_proj"),
        *norm("norm_out", "norm2"),
        *conv("conv_out", "conv2"),
    ]
    if has_skip:
        block += pointwise("skip", "conv_shortcut")
    return within(f"{ours}/", f"{theirs}.", block)


def _context_attention(ours: str, theirs: str) -> list[Entry]:
    block = [
        *norm("norm", "group_norm"),
        *linear("query", "to_q"),
        *linear("key", "to_k"),
        *linear("value", "to_v"),
        *linear("context_key", "add_k_proj"),
        *linear("context_value", "add_v_proj"),
        *linear("out", "to_out.0"),
    ]
    return within(f"{ours}/", f"{theirs}.", block)


def _widths(config: Config, where: str) -> list[int]:
    widths = config.get("block_out_channels")
    if not (isinstance(widths, list) and widths and all(type(width) is int and width > 0 for width in widths)):
        raise UserError(f"{where}: block_out_channels is {widths!r}; it must hold the width of each level")
    return widths


def _channels(config: Config, where: str) -> tuple[int, tuple[int, ...]]:
    widths = _widths(config, where)
    if any(width % widths[0] for width in widths):
        raise UserError(f"{where}: block_out_channels {widths} are not multiples of the first; only such are known")
    return widths[0], tuple(width // widths[0] for width in widths)


def _levels(config: Config, where: str, down: tuple[str, ...], up: tuple[str, ...]) -> list[bool]:
    """Return which levels attend; refuse a block type that is unknown here, and ups that do not mirror the downs."""
    expect(config, where, act_fn="silu", norm_eps=1e-5, flip_sin_to_cos=True, freq_shift=0, dropout=0.0)
    expect(config, where, downsample_padding=1, mid_block_scale_factor=1)
    downs, ups = (field(config, name, list, where) for name in ("down_block_types", "up_block_types"))
    for name, known in ((downs, down), (ups, up)):
        for block in name:
            if block not in known:
                raise UserError(f"{where}: there is a {block}; known are {', '.join(known)}")
    attending = [block == ATTENDING_DOWN for block in downs]
    if attending != [block == ATTENDING_UP for block in reversed(ups)]:
        raise UserError(f"{where}: up_block_types do not mirror down_block_types; only such U-Nets are known")
    if len(downs) != len(_widths(config, where)):
        raise UserError(f"{where}: block_out_channels and down_block_types are not equally long")
    return attending
