"""Adapters of LoRA in PEFT's layout: from files to the layers of a system, and from these to files.

    x.lora_A.weight [r in] or [r in h w]        x.lora_B.weight [out r] or [out r 1 1]

x is a layer's name in PyTorch where the network has a counterpart there (Karlo's, Kandinsky's prior, CLIP), which
diffusers and PEFT load; where it has none, its path of ours with dots, `down_1_0.conv_in`. Both are read for either.
"""

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from unclip_jax.adapters.lora import DOWN, KERNEL, UP, layers_of, shapes_of
from unclip_jax.bundle.safetensors_file import Stored, write_safetensors
from unclip_jax.convert import diffusers_nets as nets
from unclip_jax.convert import hf_clip
from unclip_jax.convert.adapter_files import METADATA, OWN_METADATA, AdapterFile, Pair
from unclip_jax.convert.layouts import CONV, LINEAR, Entry, Layout, within
from unclip_jax.convert.mapping import wanted
from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write
from unclip_jax.models.base import Network
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.models.parameters import flatten, unflatten
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.systems.adapting import Adapter
from unclip_jax.systems.system import System

Shape = tuple[int, ...]
COMPONENTS = {
    "unet": "",
    "transformer": "",
    "prior": "prior",
    "decoder": "decoder",
    "text_encoder": "clip",
    "image_encoder": "clip",
    "super_res_first": "upsampler_0.expert_1",
    "super_res_last": "upsampler_0.expert_0",
}
"""What the components of pipelines are called before the names of their layers, and which of ours each is."""
KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_prior_": "prior"}
_STACKED = Layout(lambda x: x.swapaxes(-1, -2), lambda x: x.swapaxes(-1, -2))


@dataclasses.dataclass(frozen=True)
class Slot:
    """A network that an adapter may be of: which part, and its kernels by the names of their layers in files."""

    name: str
    part: str
    layers: dict[str, tuple[Entry, Shape]]

    def entry(self, layer: str) -> tuple[Entry, Shape] | None:
        """Return the kernel of a layer, by its name or by kohya's, which has underscores for dots."""
        return self.layers.get(layer) or self._flat.get(layer)

    @functools.cached_property
    def _flat(self) -> dict[str, tuple[Entry, Shape]]:
        return {name.replace(".", "_"): value for name, value in self.layers.items()}


def _of_prior(network: PriorSpec) -> dict[str, list[Entry]]:
    return {"": nets.prior_names(network)}


def _of_unet(network: UNetSpec) -> dict[str, list[Entry]]:
    return {"": [*nets.unet_names(network), *within("", "text_proj.", nets.text_proj_names(network))]}


def _of_clip(network: CLIPSpec) -> dict[str, list[Entry]]:
    return {"": hf_clip.names(network)}


def _of_experts(network: TimestepExperts) -> dict[str, list[Entry]]:
    own = _in_torch(network.expert)
    count = len(network.boundaries) + 1
    return {f"expert_{i}": within(f"expert_{i}/", "", own[""]) for i in range(count)} if own else {}


_NAMES: dict[type[Network], Callable[..., dict[str, list[Entry]]]] = {
    PriorSpec: _of_prior,
    UNetSpec: _of_unet,
    CLIPSpec: _of_clip,
    TimestepExperts: _of_experts,
}
"""Names in PyTorch, of each network that has a counterpart there; several where ours is several of theirs."""


def _in_torch(network: Network) -> dict[str, list[Entry]]:
    named = _NAMES.get(type(network))
    return {} if named is None else named(network)


def slots(part: str, network: Network) -> list[Slot]:
    """Return what adapters may be of in one part of a system, the names that are written first."""
    shapes = {name: shape for name, shape in wanted(network).items() if name.endswith(KERNEL)}
    found, covered = [], set()
    for inside, entries in _in_torch(network).items():
        kernels = [entry for entry in entries if entry.ours in shapes and entry.layout.to_theirs is not None]
        covered |= {entry.ours for entry in kernels}
        layers = {entry.theirs.removesuffix(".weight"): (entry, shapes[entry.ours]) for entry in kernels}
        found.append(Slot(f"{part}.{inside}" if inside else part, part, layers))
    layouts = {2: LINEAR, 3: _STACKED, 4: CONV}
    own = {path: Entry(path, path.replace("/", ".") + ".weight", layouts[len(shape)]) for path, shape in shapes.items()}
    ours = Slot(part, part, {name.removesuffix(KERNEL).replace("/", "."): (own[name], shapes[name]) for name in shapes})
    # A network that has more than its counterpart is written by our names, all of it.
    return [*found, ours] if covered == set(shapes) else [ours, *found]


def fit(file: AdapterFile, system: System, wanted: str = "") -> list[Adapter]:
    """Find out which networks of a system a file adapts.

    Args:
        wanted: the part, or one of several networks of a part, "upsampler_0.expert_1"; found out where it is "".

    Raises UserError, naming the layer, for a file that fits no network, or several.
    """
    known = [slot for part, network in system.networks.items() for slot in slots(part, network)]
    if wanted:
        known = [slot for slot in known if wanted in (slot.name, slot.part)]
        if not known:
            raise UserError(f"{file.path}: bundle {system.name} has no {wanted}, only {', '.join(system.networks)}")
    adapters = []
    for component, layers in _components(file.layers, known).items():
        fitting = [slot for slot in known if all(slot.entry(layer) for layer in layers)]
        if not fitting:
            raise _misfit(file, layers, known, system)
        shaped = [slot for slot in fitting if _tensors(layers, slot) is not None]
        if not shaped:
            raise _misshapen(file, layers, fitting[0])
        for hint in (file.part, COMPONENTS.get(component)):
            named = [slot for slot in shaped if hint and hint in (slot.name, slot.part)]
            shaped = named or shaped
        if len({slot.name for slot in shaped}) > 1:
            names = " or ".join(dict.fromkeys(slot.name for slot in shaped))
            raise UserError(f"{file.path} fits {names}; say which, as {shaped[0].name}={file.path.name}")
        slot, tensors = shaped[0], _tensors(layers, shaped[0])
        assert tensors is not None
        scales = {_path(slot, layer): pair.scale for layer, pair in layers.items()}
        adapters.append(
            Adapter(name=str(file.path), part=slot.part, params=unflatten(tensors), scales=scales, base=file.base)
        )
    return adapters


def _components(layers: Mapping[str, Pair], known: Sequence[Slot]) -> dict[str, dict[str, Pair]]:
    """Return the layers of each component of a pipeline, without what stands before their names; all of them under ""
    where they are names as they are."""
    if any(all(slot.entry(layer) for layer in layers) for slot in known):
        return {"": dict(layers)}
    found: dict[str, dict[str, Pair]] = {}
    for layer, pair in layers.items():
        head, dot, rest = layer.partition(".")
        kohya = next((each for each in KOHYA if layer.startswith(each)), "")
        if kohya:
            head, rest = KOHYA[kohya], layer.removeprefix(kohya)
        elif not dot or head not in COMPONENTS:
            head, rest = "", layer
        found.setdefault(head, {})[rest] = pair
    return found


def _path(slot: Slot, layer: str) -> str:
    found = slot.entry(layer)
    assert found is not None
    return found[0].ours.removesuffix(KERNEL)


def _tensors(layers: Mapping[str, Pair], slot: Slot) -> dict[str, np.ndarray] | None:
    """Return A and B of all layers by our paths, laid out as ours; None where one of them has another shape."""
    found = {}
    for layer, pair in layers.items():
        path, entry = _path(slot, layer), slot.entry(layer)
        assert entry is not None
        both = _to_ours(pair, *entry)
        if both is None:
            return None
        found[path + DOWN], found[path + UP] = both
    return found


def _to_ours(pair: Pair, entry: Entry, kernel: Shape) -> tuple[np.ndarray, np.ndarray] | None:
    down, up, theirs = pair.down, pair.up, _theirs(entry, kernel)
    if up.shape[2:] == (1, 1) and up.ndim == 4:
        up = up[:, :, 0, 0]
    if down.ndim == 4:
        down = down.transpose(2, 3, 1, 0)
        down = down.reshape(-1, down.shape[-1]) if len(kernel) == 2 else down
    else:
        down = down.swapaxes(-1, -2)
    # Rows that theirs counts in another order than ours are the outputs', thus B's.
    try:
        up = entry.layout.to_ours(up) if len(theirs) == 2 else up.swapaxes(-1, -2)
    except ValueError:
        return None
    up = up[None, None] if len(kernel) == 4 and up.ndim == 2 else up
    fits = (down.shape, up.shape) == shapes_of(kernel, down.shape[-1])
    return (np.ascontiguousarray(down), np.ascontiguousarray(up)) if fits else None


def _to_theirs(down: np.ndarray, up: np.ndarray, entry: Entry, kernel: Shape) -> tuple[np.ndarray, np.ndarray]:
    theirs, rank = _theirs(entry, kernel), down.shape[-1]
    if len(theirs) == 4:
        _, width, *sides = theirs
        return down.reshape(*sides, width, rank).transpose(3, 2, 0, 1), up.reshape(rank, -1).T[:, :, None, None]
    assert entry.layout.to_theirs is not None
    return down.swapaxes(-1, -2), entry.layout.to_theirs(up)


def _theirs(entry: Entry, kernel: Shape) -> Shape:
    assert entry.layout.to_theirs is not None
    return entry.layout.to_theirs(np.broadcast_to(np.float32(0), kernel)).shape


def _misfit(file: AdapterFile, layers: Mapping[str, Pair], known: Sequence[Slot], system: System) -> UserError:
    best = max(known, key=lambda slot: sum(slot.entry(layer) is not None for layer in layers))
    strange = next(layer for layer in layers if best.entry(layer) is None)
    if all(best.entry(layer) is None for layer in layers):
        return UserError(
            f"{file.path}: {strange} is a layer of no network of bundle {system.name}; give an adapter of one of "
            f"{', '.join(dict.fromkeys(slot.name for slot in known))}"
        )
    return UserError(f"{file.path}: {best.name} has no layer {strange}; give an adapter that was made for it")


def _misshapen(file: AdapterFile, layers: Mapping[str, Pair], slot: Slot) -> UserError:
    for layer, pair in layers.items():
        entry = slot.entry(layer)
        if entry is not None and _to_ours(pair, *entry) is None:
            shapes = f"{list(pair.down.shape)} and {list(pair.up.shape)}"
            theirs = list(_theirs(*entry))
            return UserError(
                f"{file.path}: layer {layer} has matrices of shape {shapes}, but that of {slot.name} is {theirs}; "
                "it is an adapter of another network"
            )
    raise AssertionError(slot.name)


def save_adapter(path: Path, adapter: Adapter, network: Network) -> None:
    """Write an adapter of a network in PEFT's layout, by the first names of `slots` that it fits."""
    paths = layers_of(adapter.params)
    for slot in slots(adapter.part, network):
        names = {entry.ours.removesuffix(KERNEL): name for name, (entry, _) in slot.layers.items()}
        if names.keys() >= set(paths):
            break
    else:
        raise AssertionError("an adapter of layers that the network has not")
    flat, tensors, ranks, alphas = flatten(adapter.params), {}, {}, {}
    for each in paths:
        entry, kernel = slot.layers[names[each]]
        down, up = _to_theirs(np.asarray(flat[each + DOWN]), np.asarray(flat[each + UP]), entry, kernel)
        tensors[f"{names[each]}.lora_A.weight"], tensors[f"{names[each]}.lora_B.weight"] = down, up
        ranks[names[each]] = flat[each + DOWN].shape[-1]
        alphas[names[each]] = _number(adapter.scales[each] * ranks[names[each]])
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    own = {"part": slot.name} | ({"base": adapter.base} if adapter.base else {})
    about = {METADATA: json.dumps(config, sort_keys=True), OWN_METADATA: json.dumps(own)}
    stored = {
        name: Stored(np.dtype(np.float32), np.ascontiguousarray(value), f"{path}: {name}")
        for name, value in tensors.items()
    }
    with atomic_write(path) as draft:
        write_safetensors(draft, stored, "pt", about)


def _number(alpha: float) -> float:
    """Return a whole number where it is one but for rounding."""
    whole = round(alpha)
    return float(whole) if math.isclose(alpha, whole, rel_tol=1e-12) else alpha
