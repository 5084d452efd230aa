"""CLIP as OpenAI published it and OpenCLIP stores it: one tree for both towers, q, k and v fused in thirds.

OpenCLIP's folders say in open_clip_config.json what the towers are; weights without it are of a model whose name is
given (`open_clip_models`). OpenAI's files (a TorchScript archive each) are known by the numbers that they hold besides
weights: there the sizes are read off the tensors; heads are 64 wide in all of them, and GELU is the quick one.
"""

import math
from pathlib import Path

from unclip_jax.convert.config_files import Config, field, fields, only, per_channel
from unclip_jax.convert.hf_clip import ImageStatistics, clip_encoder, read_tokenizer
from unclip_jax.convert.layouts import LINEAR, SAME, Entry, linear, norm, patches, share, within
from unclip_jax.convert.mapping import Account, imported_system
from unclip_jax.convert.open_clip_models import config_of_name
from unclip_jax.convert.tensor_files import Tensors, open_file, read_json
from unclip_jax.core.errors import UserError
from unclip_jax.models.clip import CLIPSpec, TextSpec, VisionSpec
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")
HEAD_WIDTH = 64
# What a state_dict of OpenAI's holds besides weights; OpenCLIP's has none of the last three.
OPENAI = ("input_resolution", "context_length")
IGNORED = ("attn_mask", *OPENAI, "vocab_size")

_PLAIN: dict[str, object] = {
    "ls_init_value": None, "final_ln_after_pool": False, "act_kwargs": None, "norm_kwargs": None, "block_type": None,
    "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False,
    "scale_attn": False, "scale_fc": False, "output_tokens": False,
}  # fmt: skip
# The one value that is known of each field that is not read, and the fields that change no function.
VISION_ONLY = _PLAIN | {
    "attentional_pool": False, "no_ln_pre": False, "pos_embed_type": "learnable", "pool_type": "tok",
    "timm_model_name": None,
}  # fmt: skip
VISION_FREE = ("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "timm_*")
TEXT_ONLY = _PLAIN | {
    "embed_cls": False, "no_causal_mask": False, "pool_type": "argmax", "proj_bias": False, "proj_type": "linear",
    "text_arch": "clip", "hf_model_name": None,
}  # fmt: skip
TEXT_FREE = ("pad_id", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")
MODEL_ONLY = {"custom_text": False, "multimodal_cfg": None, "init_logit_bias": None, "nonscalar_logit_scale": False}
MODEL_FREE = ("init_logit_scale", "cast_dtype", "output_dict")
PREPROCESS_ONLY = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}
PREPROCESS_FREE = ("fill_color",)


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
    vision_names, text_names = (
        ("image_size", "patch_size", "layers", "width"),
        ("vocab_size", "context_length", "width", "layers", "heads"),
    )
    only(model, where, ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", *MODEL_FREE), MODEL_ONLY)
    only(vision, where, (*vision_names, "head_width", "mlp_ratio", *VISION_FREE), VISION_ONLY)
    only(text, where, (*text_names, "mlp_ratio", *TEXT_FREE), TEXT_ONLY)
    image_size, patch, depth, width = fields(vision, vision_names, int, where)
    vocab_size, context, text_width, text_depth, text_heads = fields(text, text_names, int, where)
    head_width = field(vision, "head_width", int, where, HEAD_WIDTH)
    mlp_width, text_mlp_width = (
        int(size * field(part, "mlp_ratio", float, where, 4.0)) for size, part in ((width, vision), (text_width, text))
    )
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
            mlp_width=None if text_mlp_width == 4 * text_width else text_mlp_width,
        ),
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        embedding="raw",
        **_image_statistics(field(config, "preprocess_cfg", dict, where, {}), image_size, where),
    )


def _image_statistics(preprocess: Config, image_size: int, where: str) -> ImageStatistics:
    """Return the mean and deviation of images; what is left out is CLIP's own, as in OpenCLIP.

    Raises UserError where images are prepared in another way than ours.
    """
    only(preprocess, where, ("mean", "std", "size", *PREPROCESS_FREE), PREPROCESS_ONLY)
    if preprocess.get("size", image_size) not in (image_size, [image_size, image_size]):
        raise UserError(f"{where}: size is {preprocess['size']!r}, but the image tower sees {image_size} px")
    statistics = ImageStatistics()
    if "mean" in preprocess:
        statistics["image_mean"] = per_channel(preprocess, "mean", where)
    if "std" in preprocess:
        statistics["image_std"] = per_channel(preprocess, "std", where)
    return statistics


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
    source: Path, name: str, license: str, tokenizer_folder: Path | None = None, config: str | None = None
) -> tuple[System, list[Account]]:
    """Import a system from a folder of OpenCLIP's, or from a file of weights, which needs a tokenizer from elsewhere.

    Args:
        config: what the weights are of, where that does not lie beside them: an open_clip_config.json, or a name of
            `open_clip_models`, or "openai".

    Raises UserError for weights that might be of several functions, and whatever `import_params` raises.
    """
    weights = source
    if source.is_dir():
        found = [source / name for name in WEIGHTS if (source / name).is_file()]
        if not found:
            raise UserError(f"{source} holds no weights; expected one of {', '.join(WEIGHTS)}")
        weights = found[0]
        if config is None and (source / CONFIG).is_file():
            config = str(source / CONFIG)
    elif tokenizer_folder is None:
        raise UserError(f"{source} has no tokenizer; give the folder of one with --tokenizer")
    tensors = open_file(weights)
    if config is None and all(name in tensors.shapes for name in OPENAI):
        config = "openai"
    if config is None:
        raise UserError(
            f"{weights} does not say which activation and how many heads it is for; give --config its {CONFIG}, "
            "or the name of the model, such as ViT-B-32"
        )
    tokenizer = read_tokenizer(tokenizer_folder or source)
    if config == "openai":
        spec = spec_of_shapes(tensors, tokenizer.eos_id)
    elif Path(config).exists():
        path = Path(config) / CONFIG if Path(config).is_dir() else Path(config)
        spec = spec_of_config(read_json(path), str(path), tokenizer.eos_id)
    else:
        spec = spec_of_config(config_of_name(config), config, tokenizer.eos_id)
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
