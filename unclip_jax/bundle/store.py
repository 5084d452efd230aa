"""A bundle's folder: written whole or not at all, and checked against its specs when read."""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, cast

import jax.numpy as jnp
import numpy as np

from unclip_jax.bundle.basis import Basis
from unclip_jax.bundle.check import check_fit, check_tensors
from unclip_jax.bundle.parts import SPECS, Bundle, Kind, Part, flatten, identity, unflatten
from unclip_jax.bundle.safetensors_file import Stored, open_safetensors, shapes_in, write_safetensors
from unclip_jax.core.config import from_json, suggest, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.files import replacing
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.diffusion.samplers import X0Variance
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import EmbeddingStats, PriorSpec
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text.tokenizer import Tokenizer

FORMAT = 1
SHIPPED = Path(__file__).parent.parent / "assets"
CONFIG, TOKENIZER, BASIS = "config.json", "tokenizer", "basis.safetensors"
STATS = "stats/"

StoredDtype = Literal["float32", "float16", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartConfig:
    """A `Part` in config.json; `spec` is read once `kind` is known."""

    kind: Kind
    spec: dict[str, Any]
    process: ProcessSpec | None = None
    clip_identity: str | None = None
    low_res_size: int | None = None
    x0_variance: X0Variance | None = None
    experts: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """config.json. `files` holds the sha256 of every other file of the folder, by its path."""

    format: int
    name: str
    license: str
    description: str
    parts: dict[str, PartConfig]
    sampling: dict[str, StageSettings]
    tokenizer_identity: str | None
    files: dict[str, str]


def save(bundle: Bundle, folder: str | Path, *, dtype: StoredDtype = "float32", overwrite: bool = False) -> str:
    """Writes a bundle; the folder appears whole or not at all.

    Args:
        bundle: what to write. A CLIP without an identity gets that of its weights.
        folder: where to.
        dtype: what weights are stored as; the statistics of z_i stay float32.
        overwrite: replace a bundle that is already there.

    Returns:
        The hash that `load` will give it.

    Raises:
        UserError: if something is already there, if parts do not fit each other, or if weights do not fit
            their spec or `dtype`.
        OSError: if the disk is full; nothing is left behind.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} already exists; choose another folder, or overwrite it")
    if overwrite and folder.exists() and not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a bundle, so it is not overwritten; choose another folder")
    bundle = _with_identity(bundle)
    check_fit(bundle)
    if "prior" in bundle.parts and bundle.stats is None:
        raise UserError("the prior comes without statistics of z_i; give those of its training data")
    with replacing(folder) as draft:
        draft.mkdir()
        if bundle.tokenizer is not None:
            bundle.tokenizer.save(draft / TOKENIZER)
        for name, part in bundle.parts.items():
            tensors = _stored(name, part, dtype)
            if part.kind == "prior":
                stats = cast(EmbeddingStats, bundle.stats)
                for key, value in (("mean", stats.mean), ("std", stats.std)):
                    tensors[f"{STATS}{key}"] = Stored(np.dtype(np.float32), value)
            write_safetensors(draft / f"{name}.safetensors", tensors)
        if bundle.basis is not None and "clip" in bundle.parts:
            _write_basis(draft / BASIS, bundle.basis)
        paths = sorted(path for path in draft.rglob("*") if path.is_file())
        config = BundleConfig(
            format=FORMAT,
            name=bundle.name,
            license=bundle.license,
            description=bundle.description,
            parts={name: _part_config(part) for name, part in bundle.parts.items()},
            sampling=bundle.sampling,
            tokenizer_identity=None if bundle.tokenizer is None else bundle.tokenizer.identity,
            files={path.relative_to(draft).as_posix(): _sha256(path) for path in paths},
        )
        _write_config(draft, config)
        return _sha256(draft / CONFIG)


def load(
    name_or_folder: str | Path,
    *,
    parts: Collection[str] | None = None,
    dtype: Any = jnp.float32,
    weights: bool = True,
) -> Bundle:
    """Reads a bundle, weights straight from the mapped files into arrays on the default device.

    Args:
        name_or_folder: a folder, or the name of a bundle that ships with the package, such as "demo".
        parts: the parts to read, "clip" or "upsampler_0"; all by default.
        dtype: what the weights become. The statistics of z_i are float32 always.
        weights: False checks the files as always but leaves every part's `params` empty.

    Raises:
        UserError: if there is no such bundle or part, if a file is missing or damaged, if its tensors are not
            exactly those of the spec, or if parts do not fit each other.
    """
    folder = find(name_or_folder)
    config = _read_config(folder)
    for name in parts or ():
        if name not in config.parts:
            raise UserError(f"bundle {config.name} has no part {name}; {suggest(name, list(config.parts))}")
    tokenizer = None
    if config.tokenizer_identity is not None:
        tokenizer = Tokenizer.from_file(folder / TOKENIZER)
        if tokenizer.identity != config.tokenizer_identity:
            raise UserError(f"{folder / TOKENIZER} is not the tokenizer of {CONFIG}; copy the bundle again")
    bundle = Bundle(
        name=config.name,
        license=config.license,
        description=config.description,
        parts={name: _part(part, f"{folder / CONFIG}: parts.{name}") for name, part in config.parts.items()},
        sampling=config.sampling,
        tokenizer=tokenizer,
        hash=_sha256(folder / CONFIG),
    )
    check_fit(bundle)
    wanted, stats, basis = {}, None, None
    for name, part in bundle.parts.items():
        if parts is not None and name not in parts:
            continue
        path = folder / f"{name}.safetensors"
        wanted[name] = _read_part(part, path, dtype, weights)
        if name == "prior":
            stats = _read_stats(path, part)
        if name == "clip" and BASIS in config.files:
            basis = _read_basis(folder / BASIS, cast(CLIPSpec, part.spec))
    return dataclasses.replace(bundle, parts=wanted, stats=stats, basis=basis)


def add_statistics(folder: Path, basis: Basis, x0_variance: dict[str, X0Variance]) -> str:
    """Writes statistics into a bundle's folder, which is replaced whole; its weights stay as they are.

    Args:
        basis: of z_i.
        x0_variance: by part.

    Returns:
        The bundle's new hash.

    Raises:
        UserError: if there is no such part.
    """
    config = _read_config(folder)
    for name in x0_variance:
        if name not in config.parts:
            raise UserError(f"bundle {config.name} has no part {name}; {suggest(name, list(config.parts))}")
    parts = {
        name: dataclasses.replace(part, x0_variance=x0_variance.get(name, part.x0_variance))
        for name, part in config.parts.items()
    }
    with replacing(folder) as draft:
        shutil.copytree(folder, draft)
        _write_basis(draft / BASIS, basis)
        files = config.files | {BASIS: _sha256(draft / BASIS)}
        _write_config(draft, dataclasses.replace(config, parts=parts, files=files))
        return _sha256(draft / CONFIG)


def _write_config(folder: Path, config: BundleConfig) -> None:
    (folder / CONFIG).write_text(json.dumps(to_json(config), indent=2, ensure_ascii=False) + "\n", "utf-8")


def find(name_or_folder: str | Path) -> Path:
    """The folder of a bundle. A shipped name wins over a folder of that name, which is ./name then.

    Raises:
        UserError: if there is no such bundle, with the names of the shipped ones.
    """
    shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))
    if str(name_or_folder) in shipped:
        return SHIPPED / name_or_folder
    folder = Path(name_or_folder)
    if (folder / CONFIG).is_file():
        return folder
    known = f"the shipped ones are {', '.join(shipped)}" if shipped else "none is shipped"
    if folder.is_dir():
        raise UserError(f"{folder} is not a bundle, it has no {CONFIG}; give a bundle's folder ({known})")
    raise UserError(f"no bundle {name_or_folder}; give a bundle's folder or a name ({known})")


def verify_files(folder: Path) -> None:
    """Compares every file with its checksum, which reads them all.

    Raises:
        UserError: naming the first file that is missing or altered.
    """
    for name, expected in _read_config(folder).files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; copy the bundle again")
        if _sha256(folder / name) != expected:
            raise UserError(f"{folder / name} is not as it was written; copy the bundle again")


def _read_config(folder: Path) -> BundleConfig:
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; copy the bundle again") from error
    if isinstance(data, dict) and data.get("format") != FORMAT:
        found = data.get("format")
        raise UserError(f"{path} has format {found!r}, this version reads {FORMAT}; upgrade unclip_jax")
    return from_json(BundleConfig, data, str(path))


def _part(config: PartConfig, path: str) -> Part:
    return Part(
        kind=config.kind,
        spec=from_json(SPECS[config.kind], config.spec, f"{path}.spec"),
        process=config.process,
        clip_identity=config.clip_identity,
        low_res_size=config.low_res_size,
        x0_variance=config.x0_variance,
        experts=config.experts,
    )


def _part_config(part: Part) -> PartConfig:
    return PartConfig(
        kind=part.kind,
        spec=to_json(part.spec),
        process=part.process,
        clip_identity=part.clip_identity,
        low_res_size=part.low_res_size,
        x0_variance=part.x0_variance,
        experts=part.experts,
    )


def _with_identity(bundle: Bundle) -> Bundle:
    clip = bundle.parts.get("clip")
    if clip is None or clip.clip_identity is not None:
        return bundle
    named = dataclasses.replace(clip, clip_identity=identity(clip.params))
    return dataclasses.replace(bundle, parts=bundle.parts | {"clip": named})


def _stored(name: str, part: Part, dtype: StoredDtype) -> dict[str, Stored]:
    """A part's weights by name, as they go to disk."""
    source = flatten(part.params)
    check_tensors(name, {key: tuple(value.shape) for key, value in source.items()}, _shapes(part))
    return {key: Stored(jnp.dtype(dtype), value, f"{name}: tensor {key}") for key, value in source.items()}


def _read_stats(path: Path, prior: Part) -> EmbeddingStats:
    with open_safetensors(path, "the bundle") as file:
        found = {name: shape for name, shape in shapes_in(file).items() if name.startswith(STATS)}
        shape = (cast(PriorSpec, prior.spec).embed_dim,)
        check_tensors(str(path), found, {f"{STATS}mean": shape, f"{STATS}std": shape})
        mean, std = (jnp.asarray(file.get_tensor(f"{STATS}{name}")) for name in ("mean", "std"))
    return EmbeddingStats(mean=mean, std=std)


def _write_basis(path: Path, basis: Basis) -> None:
    write_safetensors(path, {name: Stored(np.dtype(np.float32), value) for name, value in vars(basis).items()})


def _read_basis(path: Path, clip: CLIPSpec) -> Basis:
    with open_safetensors(path, "the bundle") as file:
        found = shapes_in(file)
        count, width = found.get("components", (0,))[0], clip.embed_dim
        check_tensors(str(path), found, {"mean": (width,), "components": (count, width), "variance": (count,)})
        return Basis(**{name: jnp.asarray(file.get_tensor(name)) for name in found})


def _read_part(part: Part, path: Path, dtype: Any, weights: bool) -> Part:
    with open_safetensors(path, "the bundle") as file:
        found = {name: shape for name, shape in shapes_in(file).items() if not name.startswith(STATS)}
        check_tensors(str(path), found, _shapes(part))
        if not weights:
            return part
        # Converted on the host: on the device every shape would be one more program to compile.
        convert = functools.partial(np.ndarray.astype, dtype=jnp.dtype(dtype), copy=False)
        tensors = {name: jnp.asarray(convert(file.get_tensor(name))) for name in found}
    return dataclasses.replace(part, params=unflatten(tensors))


def _shapes(part: Part) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flatten(part.abstract_params()).items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
