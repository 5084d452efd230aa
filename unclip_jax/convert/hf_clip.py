"""CLIP as Hugging Face lays it out: `CLIPModel`, and its towers alone with or without projection.

Two ways of finding the end of a caption are in use. Old configs have `eos_token_id` 2, and the tower reads the token
with the largest id, which in CLIP's vocabulary is end-of-text; new ones name the id. Both are the first end-of-text
token, so `TextSpec.eos_id` serves for either.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from unclip_jax.convert.config_files import Config, expect, field, fields, per_channel
from unclip_jax.convert.layouts import SAME, Entry, linear, norm, patches, within
from unclip_jax.convert.mapping import Account, import_params, imported_system, wanted
from unclip_jax.convert.tensor_files import Tensors, find_weights, read_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs
from unclip_jax.models.clip import Activation, CLIPSpec, TextSpec, VisionSpec
from unclip_jax.stages.encoders import Encoder
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer

LEGACY_EOS = 2
CLIP_SIZE = 224
"""Side in px to which a preprocessor_config.json that does not say it resizes."""
IGNORED = ("*.embeddings.position_ids",)
QUICK_GELU = "quick_gelu"
ACTIVATIONS: dict[str, Activation] = {QUICK_GELU: QUICK_GELU, "gelu": "gelu"}


def text_spec(config: Config, where: str, eos_id: int) -> TextSpec:
    """Translate a `text_config` (or the config of a text tower alone) to ours; `eos_id` is the tokenizer's."""
    check_tower(config, where)
    stated = config.get("eos_token_id", LEGACY_EOS)
    if stated not in (LEGACY_EOS, eos_id):
        raise UserError(f"{where}: eos_token_id is {stated}, but the tokenizer ends with {eos_id}; they must agree")
    vocab_size = field(config, "vocab_size", int, where)
    if stated == LEGACY_EOS and eos_id != vocab_size - 1:
        raise UserError(f"{where}: eos_token_id 2 asks for an end-of-text token with the largest id; it is {eos_id}")
    return TextSpec(
        vocab_size=vocab_size,
        context=field(config, "max_position_embeddings", int, where),
        eos_id=eos_id,
        **_tower(config, where),
    )


def vision_spec(config: Config, where: str) -> VisionSpec:
    """Translate a `vision_config` (or the config of an image tower alone) to ours."""
    check_tower(config, where)
    expect(config, where, num_channels=3)
    size, patch = fields(config, ("image_size", "patch_size"), int, where)
    return VisionSpec(image_size=size, patch_size=patch, **_tower(config, where))


def check_tower(config: Config, where: str) -> None:
    """Refuse what our Transformer does differently."""
    expect(config, where, layer_norm_eps=1e-5)
    if config.get("hidden_act", QUICK_GELU) not in list(ACTIVATIONS):
        raise UserError(f"{where}: hidden_act is {config['hidden_act']!r}; known are {', '.join(ACTIVATIONS)}")


def activation(towers: Sequence[Config], where: str) -> Activation:
    """Return the activation of towers, from their configs; UserError where they differ."""
    found = list(dict.fromkeys(field(config, "hidden_act", str, where, QUICK_GELU) for config in towers))
    if len(found) > 1:
        raise UserError(f"{where}: hidden_act is {' and '.join(found)}; towers are known with one activation only")
    return ACTIVATIONS[found[0]]


class _Tower(TypedDict):
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int | None


def _tower(config: Config, where: str) -> _Tower:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    width, depth, heads, mlp_width = fields(config, names, int, where)
    return {
        "width": width,
        "num_layers": depth,
        "num_heads": heads,
        "mlp_width": None if mlp_width == 4 * width else mlp_width,
    }


def blocks(ours: str, theirs: str, depth: int) -> list[Entry]:
    """Map the names of the Transformer of either tower."""
    entries: list[Entry] = []
    for i in range(depth):
        block = norm("norm_attention", "layer_norm1") + norm("norm_mlp", "layer_norm2")
        for mine, their in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
            block += linear(f"attention/{mine}", f"self_attn.{their}")
        block += linear("fc", "mlp.fc1") + linear("proj", "mlp.fc2")
        entries += within(f"{ours}/block_{i}/", f"{theirs}.{i}.", block)
    return entries


def text_names(spec: CLIPSpec) -> list[Entry]:
    """Map the names of the text tower below `text_model.`, and of its projection."""
    entries = [
        Entry("token_embed/embedding", "text_model.embeddings.token_embedding.weight", SAME),
        Entry("text_positions", "text_model.embeddings.position_embedding.weight", SAME),
        *norm("norm_final", "text_model.final_layer_norm"),
        *blocks("text_blocks", "text_model.encoder.layers", spec.text_tower.num_layers),
    ]
    return entries + (linear("text_projection", "text_projection", bias=False) if spec.projection else [])


def vision_names(spec: CLIPSpec) -> list[Entry]:
    """Map the names of the image tower below `vision_model.`, and of its projection."""
    tower = spec.image_tower
    entries = [
        Entry("class_token", "vision_model.embeddings.class_embedding", SAME),
        Entry("patch_embed/kernel", "vision_model.embeddings.patch_embedding.weight", patches(tower.patch_size)),
        Entry("vision_positions", "vision_model.embeddings.position_embedding.weight", SAME),
        *norm("norm_pre", "vision_model.pre_layrnorm"),
        *norm("norm_post", "vision_model.post_layernorm"),
        *blocks("vision_blocks", "vision_model.encoder.layers", tower.num_layers),
    ]
    return entries + (linear("image_projection", "visual_projection", bias=False) if spec.projection else [])


def names(spec: CLIPSpec) -> list[Entry]:
    """Map all names of a `CLIPModel`, or of one of its towers."""
    entries = [] if spec.text is None else text_names(spec)
    entries += [] if spec.vision is None else vision_names(spec)
    return entries + ([Entry("logit_scale", "logit_scale", SAME)] if spec.contrastive else [])


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a folder in either of Hugging Face's formats (tokenizer.json, or vocab.json and
    merges.txt)."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that the tokenizer's files are in")
    # Imported here, since it takes seconds.
    with needs("convert"):
        import transformers

    try:
        theirs = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        definition = theirs.backend_tokenizer.to_str()
        special = {name: str(getattr(theirs, name)) for name in ("bos_token", "eos_token", "pad_token")}
    except Exception as error:  # whatever a damaged file makes the library raise
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder} holds no tokenizer that transformers can read ({line}); copy it again") from error
    return Tokenizer.from_definition(definition, **special)


class ImageStatistics(TypedDict, total=False):
    """Fields of `CLIPSpec`."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


def read_image_statistics(path: Path, image_size: int) -> ImageStatistics:
    """Read the `image_mean` and `image_std` of a preprocessor_config.json.

    Raises UserError where there is none, or where images are prepared in another way than ours: made so small that the
    middle square is what the tower sees.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing, which says how images are prepared; copy it there")
    config, where = read_json(path), str(path)
    expect(config, where, do_resize=True, do_center_crop=True, do_normalize=True, do_rescale=True, resample=3)
    expect(config, where, rescale_factor=1 / 255)
    sides = {"size": ("shortest_edge",), "crop_size": ("height", "width")}
    for name, edges in sides.items():
        value = config.get(name, CLIP_SIZE)
        found = [value.get(edge) for edge in edges] if isinstance(value, dict) else [value]
        if set(found) != {image_size}:
            raise UserError(f"{where}: {name} is {value!r}; only {image_size} px, which the tower sees, are known")
    mean, std = (per_channel(config, name, where) for name in ("image_mean", "image_std"))
    return ImageStatistics(image_mean=mean, image_std=std)


def import_clip(folder: Path, name: str, license: str) -> tuple[System, list[Account]]:
    """Import a CLIP, or one tower, from the folder of a Hugging Face model."""
    config, where = read_json(folder / "config.json"), str(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("clip", "clip_text_model", "clip_vision_model"):
        raise UserError(f"{where}: model_type is {kind!r}; this reads CLIP (clip, clip_text_model, clip_vision_model)")
    architectures = config.get("architectures")
    named = [str(each) for each in architectures] if isinstance(architectures, list) else []
    projection = any(each.endswith("WithProjection") for each in named) or kind == "clip"
    tokenizer = None if kind == "clip_vision_model" else read_tokenizer(folder)
    text_config = field(config, "text_config", dict, where) if kind == "clip" else config
    vision_config = field(config, "vision_config", dict, where) if kind == "clip" else config
    text = None if tokenizer is None else text_spec(text_config, where, tokenizer.eos_id)
    vision = None if kind == "clip_text_model" else vision_spec(vision_config, where)
    towers = [text_config] * (text is not None) + [vision_config] * (vision is not None)
    statistics = ImageStatistics()
    if vision is not None:
        statistics = read_image_statistics(folder / "preprocessor_config.json", vision.image_size)
    width = text.width if text is not None else (vision.width if vision is not None else 0)
    spec = CLIPSpec(
        embed_dim=field(config, "projection_dim", int, where) if projection else width,
        text=text,
        vision=vision,
        projection=projection,
        contrastive=kind == "clip",
        activation=activation(towers, where),
        embedding="raw",
        **statistics,
    )
    tensors, entries = find_weights(folder, "model"), names(spec)
    if kind != "clip" and not any(name.startswith(("text_model.", "vision_model.")) for name in tensors.shapes):
        # transformers 5 names a tower without projection from its own root.
        entries = [dataclasses.replace(entry, theirs=entry.theirs.partition(".")[2]) for entry in entries]
    encoder, accounts = clip_encoder(spec, [(tensors, entries)])
    about = f"imported {kind}"
    return imported_system(encoder, {}, name=name, license=license, description=about, tokenizer=tokenizer), accounts


def clip_encoder(
    spec: CLIPSpec, sources: Sequence[tuple[Tensors, Sequence[Entry]]], ignored: Sequence[str] = IGNORED
) -> tuple[Encoder, list[Account]]:
    """Return the encoder that `sources` (see `import_params`) make up."""
    params, accounts = import_params(sources, wanted(spec), ignored)
    return Encoder(network=spec, params=params), accounts
