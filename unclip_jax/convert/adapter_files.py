"""Files of LoRA adapters as they are found, in all layouts that are in use.

    x.lora_A.weight, x.lora_B.weight                      PEFT and diffusers; also x.lora_A.NAME.weight
    base_model.model.x...., with adapter_config.json      PEFT's own, a folder
    x.processor.to_q_lora.down.weight, ...up.weight       diffusers before 2024, and x.lora.down.weight
    lora_unet_x_y.lora_down.weight, .lora_up.weight       kohya, dots written as underscores

A is [r in] or [r in h w], B is [out r] or [out r 1 1]. How much an adapter is scaled is, in this order: a tensor
x.alpha / r; `lora_alpha` of the config, in `lora_adapter_metadata` of a safetensors file or in adapter_config.json,
over r or sqrt(r); 1. Names may begin with that of a pipeline's component, such as `unet.`

Nothing of a file is trusted: what is not known here is refused by name, and nothing is unpickled but tensors.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from unclip_jax.bundle.safetensors_file import open_safetensors, read_tensor, shapes_in
from unclip_jax.convert.tensor_files import open_file, read_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.reading import parse_json
from unclip_jax.core.typing import JsonDict
from unclip_jax.models.parameters import check_finite

CONFIG, WEIGHTS = "adapter_config.json", "pytorch_lora_weights.safetensors"
NAMES = (WEIGHTS, "adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin")
"""What the weights are called in a folder."""
METADATA, OWN_METADATA = "lora_adapter_metadata", "unclip_jax"
MAX_NAME = 512
_WRAPPED = "base_model.model."
_LAYER = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<matrix>[AB])(?:\.\w+)?\.weight|"
    r"(?:\.lora_|\.lora\.|\.lora_linear_layer\.|_lora\.)(?P<end>down|up)\.weight|"
    r"\.(?P<alpha>alpha))"
)
# What diffusers called a projection before 2024, when a LoRA was an attention processor, and what it is called now.
_OLD = (
    (r"\.processor\.", "."),
    (r"(self_attn)\.to_([qkv])$", r"\1.\2_proj"),
    (r"(self_attn)\.to_out$", r"\1.out_proj"),
)
_OUT = re.compile(r"(^|\.)to_out$")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A and B of one layer, as the file has them, and the scale of their product."""

    down: np.ndarray
    up: np.ndarray
    scale: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """What a file holds: layers by their names there, and where it is one of ours, what it says of its base."""

    path: Path
    layers: dict[str, Pair]
    part: str | None = None
    base: str | None = None


def weights_of(path: Path) -> Path:
    """Return the file with the weights of an adapter, which may be a folder; UserError where there is none."""
    if not path.is_dir():
        return path
    found = [path / name for name in NAMES if (path / name).is_file()]
    if not found:
        raise UserError(f"{path} holds no {' or '.join(NAMES[:2])}; give an adapter's file or folder")
    return found[0]


def files_of(path: Path) -> list[Path]:
    """Return all files that `read_adapter` reads."""
    config = path / CONFIG
    return [weights_of(path), *([config] if config.is_file() else [])]


def read_adapter(path: Path) -> AdapterFile:
    """Read an adapter, a file or a folder.

    Raises UserError, naming file and tensor, for whatever is no LoRA, not finite, or of no known layout.
    """
    file = weights_of(path)
    tensors, about = _read(file)
    own = _object(about.get(OWN_METADATA), file)
    config = _object(about.get(METADATA), file)
    if path.is_dir() and (path / CONFIG).is_file():
        config = read_json(path / CONFIG)
    _check_config(config, file)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        layer, kind = _named(name, file)
        if kind in found.setdefault(layer, {}):
            raise UserError(f"{file}: layer {layer} is there twice; it is no adapter that is known")
        found[layer][kind] = value
    layers = {layer: _pair(layer, own, config, file) for layer, own in found.items()}
    if not layers:
        raise UserError(f"{file} holds no tensors; give an adapter")
    part, base = (own.get(name) if isinstance(own.get(name), str) else None for name in ("part", "base"))
    return AdapterFile(path=file, layers=layers, part=part or None, base=base or None)  # pyright: ignore[reportArgumentType]


def _read(file: Path) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    if file.suffix != ".safetensors":
        if file.suffix not in (".bin", ".pt", ".pth", ".ckpt"):
            raise UserError(f"{file} is no .safetensors, .bin or .pt; give an adapter's file or folder")
        tensors = open_file(file)
        return _finite(file, {name: tensors.read(name) for name in tensors.shapes}), {}
    with open_safetensors(file, "the adapter") as opened:
        found = {name: read_tensor(opened, name, file) for name in shapes_in(opened)}
        return _finite(file, found), opened.metadata() or {}  # pyright: ignore[reportAttributeAccessIssue]


def _finite(file: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    check_finite(str(file), found)
    return found


def _object(text: str | None, file: Path) -> JsonDict:
    """Read a JSON object that stands in a header."""
    if text is None:
        return {}
    try:
        data = parse_json(text)
    except ValueError as error:
        raise UserError(f"{file}: its metadata is not JSON ({error}); copy it again") from error
    return data if isinstance(data, dict) else {}


def _check_config(config: JsonDict, file: Path) -> None:
    """Refuse adapters of another kind, with or without the prefix of a component."""
    for name, value in config.items():
        field = name.rpartition(".")[2]
        if field == "peft_type" and value not in (None, "LORA"):
            raise UserError(f"{file} is an adapter of type {str(value)[:40]!r}; only LORA is known")
        if field in ("use_dora", "fan_in_fan_out") and value:
            raise UserError(f"{file} has {field}, which changes what it computes; only plain LoRA is known")


def _named(name: str, file: Path) -> tuple[str, str]:
    """Return the layer of a tensor, as diffusers calls it today, and "A", "B" or "alpha"."""
    match = _LAYER.fullmatch(name.removeprefix(_WRAPPED)) if len(name) <= MAX_NAME else None
    if match is None:
        raise UserError(f"{file}: tensor {name[:80]} is no part of a LoRA of a layer; give another adapter")
    kind = match["matrix"] or match["alpha"] or {"down": "A", "up": "B"}[match["end"]]
    layer = match["layer"].removeprefix(_WRAPPED)
    for pattern, new in _OLD:
        layer = re.sub(pattern, new, layer)
    return _OUT.sub(r"\1to_out.0", layer), kind


def _pair(layer: str, own: Mapping[str, np.ndarray], config: JsonDict, file: Path) -> Pair:
    for kind in ("A", "B"):
        if kind not in own:
            raise UserError(f"{file}: layer {layer} has no {kind}; copy the adapter again")
    down, up = own["A"], own["B"]
    if down.ndim < 2 or up.ndim < 2 or 0 in down.shape or 0 in up.shape:
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise UserError(f"{file}: layer {layer} has matrices of shape {shapes}; copy the adapter again")
    rank = down.shape[-2] if down.ndim == 3 else down.shape[0]
    if "alpha" in own:
        if own["alpha"].size != 1:
            raise UserError(f"{file}: alpha of layer {layer} is no single number; copy the adapter again")
        return Pair(down, up, float(own["alpha"].reshape(())) / rank)
    # A pipeline's file has the config of each component under its name.
    prefixes = [name.removesuffix("lora_alpha") for name in config if name.endswith(".lora_alpha")]
    prefix = next((each for each in prefixes if layer.startswith(each)), "")
    alpha = _alpha(layer.removeprefix(prefix), config, prefix, file)
    if alpha is None:
        return Pair(down, up, 1.0)
    return Pair(down, up, alpha / (math.sqrt(rank) if config.get(f"{prefix}use_rslora") else rank))


def _alpha(layer: str, config: JsonDict, prefix: str, file: Path) -> float | None:
    """Return a layer's alpha by the config: its own, where `alpha_pattern` has it by name, or that of all."""
    own, value = config.get(f"{prefix}alpha_pattern"), config.get(f"{prefix}lora_alpha")
    for name, alpha in own.items() if isinstance(own, dict) else ():
        literal = name.removeprefix("^").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]*", literal):
            raise UserError(f"{file}: alpha_pattern has {name[:80]!r}, which is more than a layer's name; spell it out")
        if layer == literal or layer.endswith(f".{literal}"):
            value = alpha
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{file}: lora_alpha of layer {layer} is {str(value)[:40]}, no number; copy the adapter again")
    return float(value)
