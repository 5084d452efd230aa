"""CLIP as OpenAI published it and OpenCLIP stores it: one tree for both towers, q, k and v fused in thirds.

OpenCLIP's folders say in open_clip_config.json what the towers are. OpenAI's files (a TorchScript archive each) say
nothing, so there the sizes are read off the tensors; heads are 64 wide in all of them, and GELU is the quick one.
"""

import math
from pathlib import Path

from unclip_jax.convert.config_files import Config, expect, field, fields, per_channel
from unclip_jax.convert.hf_clip import ImageStatistics, clip_encoder, read_tokenizer
from unclip_jax.convert.layouts import LINEAR, SAME, Entry, linear, norm, patches, share, within
from unclip_jax.convert.mapping import Account, imported_system
from unclip_jax.convert.tensor_files import Tensors, open_file, read_json
from unclip_jax.core.errors import UserError
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")
HEAD_WIDTH = 64
# What a state_dict holds besides weights.
IGNORED = ("attn_mask", "input_resolution", "context_length", "vocab_size")


def names(spec: CLIPSpec) -> list[Entry]:
    """Map the names of both towers."""
    return [
        Entry("class_token", "visual.class_embedding"),
        Entry("patch_embed/kernel", "visual.conv1.weight", patches(spec.image_tower.patch_size)),
        Entry("vision_positions", "visual.positional_embedding"),
        *norm("norm_pre", "visual.ln_pre"),
        *norm("norm_post", "visual.ln_post"),
        *_blocks("vision_blocks", "visual.transformer.resblocks", spec.image_tower.num_layers),
        # Theirs multiplies from the right, so this one is not transposed; nor is the next but one.
        Entry("image_projection/kernel", "visual.proj", SAME),
        Entry("token_embed/embedding", "token_embedding.weight"),
        Entry("text_projection/kernel", "text_projection", SAME),
        Entry("text_positions", "positional_embedding"),
        *norm("norm_final", "ln_final"),
        *_blocks("text_blocks", "transformer.resblocks", spec.text_tower.num_layers),
        Entry("logit_scale", "logit_scale"),
    ]


def _blocks(ours: str, theirs: str, depth: int) -> list[Entry]:
    entries: list[Entry] = []
    for i in range(depth):
        block = [*norm("norm_attention", "ln_1"), *norm("norm_mlp", "ln_2")]
        for third, name in enumerate(("query", "key", "value")):
            rows = share(third, 3)
            block.append(Entry(f"attention/{name}/kernel", "attn.in_proj_weight", rows.then(LINEAR)))
            block.append(Entry(f"attention/{name}/bias", "attn.in_proj_bias", rows))
        block += linear("attention/out", "attn.out_proj") + linear("fc", "mlp.c_fc") + linear("proj", "mlp.c_proj")
        entries += within(f"{ours}/block_{i}/", f"{theirs}.{i}.", block)
    return entries


def spec_of_config(config: Config, where: str, eos_id: int) -> CLIPSpec:
    """Translate the `model_cfg` and `preprocess_cfg` of open_clip_config.json to ours."""
    model = field(config, "model_cfg", dict, where)
    vision, text = fields(model, ("vision_cfg", "text_cfg"), dict, where)
    for unknown in ("timm_model_name", "hf_model_name", "custom_text"):
        if any(part.get(unknown) for part in (model, vision, text)):
            raise UserError(f"{where}: {unknown} is set; only OpenCLIP's own towers are known")
    expect(vision, where, ls_init_value=None, attentional_pool=False, pool_type="tok", patch_dropout=0.0)
    expect(text, where, ls_init_value=None, pool_type="argmax", no_causal_mask=False, embed_cls=False)
    image_size, patch, depth, width = fields(vision, ("image_size", "patch_size", "layers", "width"), int, where)
    head_width, ratio = vision.get("head_width", HEAD_WIDTH), vision.get("mlp_ratio", 4.0)
    names = ("vocab_size", "context_length", "width", "layers", "heads")
    vocab_size, context, text_width, text_depth, text_heads = fields(text, names, int, where)
    preprocess = field(config, "preprocess_cfg", dict, where, {})
    statistics = ImageStatistics()
    if "mean" in preprocess:
        statistics["image_mean"] = per_channel(preprocess, "mean", where)
    if "std" in preprocess:
        statistics["image_std"] = per_channel(preprocess, "std", where)
    mlp_width = int(width * ratio)
    return CLIPSpec(
        embed_dim=field(model, "embed_dim", int, where),
        vision=VisionSpec(
            image_size=image_size,
            patch_size=patch,
            width=width,
            num_layers=depth,
            num_heads=width // head_width,
            mlp_width=None if mlp_width == 4 * width else mlp_width,
        ),
        text=TextSpec(
            vocab_size=vocab_size,
            context=context,
            width=text_width,
            num_layers=text_depth,
            num_heads=text_heads,
            eos_id=eos_id,
        ),
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        embedding="raw",
        **statistics,
    )


def spec_of_shapes(tensors: Tensors, eos_id: int) -> CLIPSpec:
    """Derive the spec from the tensors of an OpenAI file."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        found = tensors.shapes.get(name, ())
        if len(found) != rank:
            raise UserError(f"{tensors.path}: tensor {name} is missing or misshapen; this is no CLIP of OpenAI's")
        return found

    def depth(prefix: str) -> int:
        numbers = {name.removeprefix(prefix).split(".")[0] for name in tensors.shapes if name.startswith(prefix)}
        return len(numbers)

    width, _, patch, _ = shape("visual.conv1.weight", 4)
    patches_and_class = shape("visual.positional_embedding", 2)[0]
    context, text_width = shape("positional_embedding", 2)
    return CLIPSpec(
        embed_dim=shape("text_projection", 2)[1],
        vision=VisionSpec(
            image_size=math.isqrt(patches_and_class - 1) * patch,
            patch_size=patch,
            width=width,
            num_layers=depth("visual.transformer.resblocks."),
            num_heads=width // HEAD_WIDTH,
        ),
        text=TextSpec(
            vocab_size=shape("token_embedding.weight", 2)[0],
            context=context,
            width=text_width,
            num_layers=depth("transformer.resblocks."),
            num_heads=text_width // HEAD_WIDTH,
            eos_id=eos_id,
        ),
        activation="quick_gelu",
        embedding="raw",
    )


def import_open_clip(
    source: Path, name: str, license: str, tokenizer_folder: Path | None = None
) -> tuple[System, list[Account]]:
    """Import a system from OpenCLIP's folder, or from a file of OpenAI's, which needs a tokenizer from elsewhere."""
    if source.is_dir():
        weights = next((source / name for name in WEIGHTS if (source / name).is_file()), None)
        if weights is None:
            raise UserError(f"{source} holds no weights; expected one of {', '.join(WEIGHTS)}")
        tokenizer = read_tokenizer(tokenizer_folder or source)
        spec = spec_of_config(read_json(source / CONFIG), str(source / CONFIG), tokenizer.eos_id)
        tensors = open_file(weights)
    else:
        if tokenizer_folder is None:
            raise UserError(f"{source} has no tokenizer; give the folder of one with --tokenizer")
        tokenizer, tensors = read_tokenizer(tokenizer_folder), open_file(source)
        spec = spec_of_shapes(tensors, tokenizer.eos_id)
    check_end(spec, tokenizer, source)
    encoder, accounts = clip_encoder(spec, [(tensors, names(spec))], IGNORED)
    about = "imported OpenCLIP"
    return imported_system(encoder, {}, name=name, license=license, description=about, tokenizer=tokenizer), accounts


def check_end(spec: CLIPSpec, tokenizer: Tokenizer, source: Path) -> None:
    """Refuse a tokenizer whose end-of-text is not the largest id, which is where both projects read a caption."""
    if tokenizer.eos_id != spec.text_tower.vocab_size - 1:
        raise UserError(
            f"{source} reads captions at token {spec.text_tower.vocab_size - 1}, but its tokenizer ends them with "
            f"{tokenizer.eos_id}; use the tokenizer that belongs to it"
        )
