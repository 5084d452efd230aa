"""A bundle's folder: written whole or not at all, and checked against its specs when read."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import safe_open

from unclip_jax.bundle import format_1
from unclip_jax.bundle.check import as_written, check_fit, check_tensors
from unclip_jax.bundle.config import FORMAT, BundleConfig, EncoderConfig, StageConfig
from unclip_jax.bundle.safetensors_file import Stored, open_safetensors, read_tensor, shapes_in, write_safetensors
from unclip_jax.core.config import suggest
from unclip_jax.core.digests import file_digest
from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write, try_writing
from unclip_jax.core.reading import parse_json, read_text
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.samplers import X0Variance
from unclip_jax.models.base import Network
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.parameters import check_finite, flatten, identity, unflatten
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems.basis import Basis
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer

SHIPPED = Path(__file__).parent.parent / "assets"
CONFIG, TOKENIZER, BASIS, ADAPTERS = "config.json", "tokenizer", "basis.safetensors", "adapters"
STATS = "stats/"

StoredDtype = Literal["float32", "float16", "bfloat16"]


def save(system: System, folder: str | Path, *, dtype: StoredDtype = "float32", overwrite: bool = False) -> str:
    """Write a bundle; the folder appears whole or not at all.

    Args:
        system: what to write. An encoder without an identity gets that of its weights.
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
    check_place(folder, overwrite=overwrite)
    unnamed = {
        name: identity(encoder.params) for name, encoder in system.encoders.items() if name not in system.identities
    }
    system = dataclasses.replace(system, identities=unnamed | system.identities)
    check_fit(system)
    with atomic_write(folder) as draft:
        draft.mkdir()
        if system.tokenizer is not None:
            system.tokenizer.save(draft / TOKENIZER)
        params = {name: encoder.params for name, encoder in system.encoders.items()} | system.params
        for name, network in system.networks.items():
            tensors = _stored(name, network, params[name], dtype)
            if name in system.stages and system.stages[name].needs_stats:
                if system.stats is None:
                    raise UserError(f"the {name} comes without statistics of z_i; give those of its training data")
                for key, value in vars(system.stats).items():
                    stat = f"{STATS}{key}"
                    tensors[stat] = Stored(np.dtype(np.float32), value, f"{name}: tensor {stat}")
            write_safetensors(draft / f"{name}.safetensors", tensors)
        if system.basis is not None and "clip" in system.encoders:
            _write_basis(draft / BASIS, system.basis)
        paths = {path.relative_to(draft).as_posix(): path for path in sorted(draft.rglob("*")) if path.is_file()}
        config = _config(system, {name: _sha256(path) for name, path in paths.items()})
        digests = {name: file_digest(path) for name, path in paths.items()}
        _write_config(draft, dataclasses.replace(config, digests=digests))
        return _sha256(draft / CONFIG)


def check_place(folder: Path, *, overwrite: bool = False) -> None:
    """Make sure, before any work, that a bundle can be written as `folder`; UserError where it cannot."""
    if os.path.lexists(folder):
        if not overwrite:
            raise UserError(f"{folder} already exists; choose another folder, or overwrite it")
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} is not a bundle, so it is not overwritten; choose another folder")
    try_writing(folder)


def load(
    name_or_folder: str | Path,
    *,
    parts: Collection[str] | None = None,
    dtype: DTypeLike = jnp.float32,
    weights: bool = True,
    towers: Collection[str] | None = None,
) -> System:
    """Read a bundle, weights straight from the mapped files into arrays on the default device.

    Args:
        name_or_folder: a folder, or the name of a bundle that ships with the package, such as "demo".
        parts: the encoders and stages whose weights are read, "clip" or "upsampler_0"; all by default.
        dtype: what the weights become. The statistics of z_i are float32 always.
        weights: False checks the files as always but reads no weights.
        towers: of a CLIP those whose weights are read, "image" and "text", see `CLIPSpec.only`; all by default.

    Raises:
        UserError: if there is no such bundle or part, if a file is missing, damaged or not as it was written, if its
            tensors are not exactly those of the spec, or not finite, or if parts do not fit each other.
    """
    folder = find(name_or_folder)
    config = _read_config(folder)
    names = [*config.encoders, *config.stages]
    for name in parts or ():
        if name not in names:
            raise UserError(f"bundle {config.name} has no part {name}; {suggest(name, names)}")
    wanted = [name for name in names if parts is None or name in parts]
    with as_written(folder, config, wanted if weights else ()):
        return _load(folder, config, wanted, dtype, weights, towers)


def _load(
    folder: Path,
    config: BundleConfig,
    wanted: Collection[str],
    dtype: DTypeLike,
    weights: bool,
    towers: Collection[str] | None,
) -> System:
    system = _system(config, _read_tokenizer(folder, config), _sha256(folder / CONFIG))
    check_fit(system)
    params, parts, stats, basis = {}, dict[str, Network](), None, None
    for name, network in system.networks.items():
        if name not in wanted:
            continue
        path = folder / f"{name}.safetensors"
        parts[name] = network
        if towers is not None and isinstance(network, CLIPSpec):
            parts[name] = network.only(towers)
        params[name] = _read_params(network, path, dtype, weights, None if parts[name] is network else parts[name])
        if name in system.stages and system.stages[name].needs_stats:
            stats = jax.tree.map(jnp.asarray, _read_stats(path, network))
        if name == "clip" and BASIS in config.files:
            basis = _read_basis(folder / BASIS, network)
    encoders = {
        name: Encoder(network=parts.get(name, each.network), params=params.get(name, {}))
        for name, each in system.encoders.items()
    }
    own = {name: params[name] for name in system.stages if name in params and weights}
    return dataclasses.replace(system, encoders=encoders, params=own, stats=stats, basis=basis)


def describe(name_or_folder: str | Path) -> System:
    """Read what a bundle says of itself, the statistics of z_i included: all but weights and basis, and no device is
    touched. Raises UserError as `load`, for what it reads."""
    folder = find(name_or_folder)
    config = _read_config(folder)
    system = _system(config, _read_tokenizer(folder, config), _sha256(folder / CONFIG))
    for name, stage in system.stages.items():
        if stage.needs_stats:
            system = dataclasses.replace(system, stats=_read_stats(folder / f"{name}.safetensors", stage.network))
    return system


def _read_tokenizer(folder: Path, config: BundleConfig) -> Tokenizer | None:
    if config.tokenizer_identity is None:
        return None
    tokenizer = Tokenizer.from_file(folder / TOKENIZER)
    if tokenizer.identity != config.tokenizer_identity:
        raise UserError(f"{folder / TOKENIZER} is not the tokenizer of {CONFIG}; copy the bundle again")
    return tokenizer


def _system(config: BundleConfig, tokenizer: Tokenizer | None, own_hash: str) -> System:
    """Return the description of a bundle, without weights."""
    named = [*config.encoders.items(), *config.stages.items()]
    return System(
        name=config.name,
        license=config.license,
        description=config.description,
        encoders={name: Encoder(network=each.network, params={}) for name, each in config.encoders.items()},
        stages={name: each.stage for name, each in config.stages.items()},
        streams={name: each.stream for name, each in config.stages.items()},
        identities={name: each.identity for name, each in named if each.identity is not None},
        sampling=config.sampling,
        tokenizer=tokenizer,
        hash=own_hash,
    )


def _config(system: System, files: Mapping[str, str]) -> BundleConfig:
    def stage(name: str) -> StageConfig:
        return StageConfig(stage=system.stages[name], stream=system.streams[name], identity=system.identities.get(name))

    return BundleConfig(
        name=system.name,
        license=system.license,
        description=system.description,
        encoders={
            name: EncoderConfig(network=encoder.network, identity=system.identities.get(name))
            for name, encoder in system.encoders.items()
        },
        stages={name: stage(name) for name in system.stages},
        sampling=system.sampling,
        tokenizer_identity=None if system.tokenizer is None else system.tokenizer.identity,
        files=dict(files),
    )


def add_statistics(folder: Path, basis: Basis, x0_variance: dict[str, X0Variance]) -> str:
    """Write statistics into a bundle's folder, which is replaced whole; its weights stay as they are.

    Args:
        basis: of z_i.
        x0_variance: by stage.

    Returns:
        The bundle's new hash.

    Raises:
        UserError: if there is no such stage.
    """
    config = _read_config(folder)
    stages = dict(config.stages)
    for name, variance in x0_variance.items():
        own = config.stages.get(name)
        if own is None or not isinstance(own.stage, DiffusionStage):
            raise UserError(f"bundle {config.name} has no stage {name}; {suggest(name, list(config.stages))}")
        stages[name] = dataclasses.replace(own, stage=dataclasses.replace(own.stage, x0_variance=variance))
    with atomic_write(folder) as draft:
        shutil.copytree(folder, draft)
        _write_basis(draft / BASIS, basis)
        files = config.files | {BASIS: _sha256(draft / BASIS)}
        digests = config.digests | {BASIS: file_digest(draft / BASIS)} if config.digests else {}
        _write_config(draft, dataclasses.replace(config, stages=stages, files=files, digests=digests))
        return _sha256(draft / CONFIG)


def add_adapters(folder: Path, out: Path, adapters: Mapping[str, Path]) -> str:
    """Write a copy of a bundle that carries adapters besides, files by their names; returns its hash.

    Raises UserError where it has one of that name.
    """
    config, files, digests = _read_config(folder), {}, {}
    with atomic_write(out) as draft:
        shutil.copytree(folder, draft)
        (draft / ADAPTERS).mkdir(exist_ok=True)
        for name, path in adapters.items():
            file = f"{ADAPTERS}/{name}.safetensors"
            if file in config.files:
                raise UserError(f"bundle {config.name} carries an adapter called {name}; give yours another name")
            shutil.copyfile(path, draft / file)
            files[file], digests[file] = _sha256(draft / file), file_digest(draft / file)
        digests = config.digests | digests if config.digests else {}
        _write_config(draft, dataclasses.replace(config, files=config.files | files, digests=digests))
        return _sha256(draft / CONFIG)


def carried(folder: Path) -> list[str]:
    """Return the names of the adapters that a bundle carries."""
    files = [Path(name) for name in _read_config(folder).files]
    return sorted(path.stem for path in files if path.parent.name == ADAPTERS)


def _write_config(folder: Path, config: BundleConfig) -> None:
    (folder / CONFIG).write_text(
        json.dumps(config.write(), indent=2, ensure_ascii=False) + "\n", "utf-8", "backslashreplace"
    )


def shipped() -> list[str]:
    """Return the names of the bundles that ship with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def find(name_or_folder: str | Path) -> Path:
    """Return the folder of a bundle. A shipped name wins over a folder of that name, which is ./name then.

    Raises:
        UserError: if there is no such bundle, with the names of the shipped ones.
    """
    names = shipped()
    if str(name_or_folder) in names:
        return SHIPPED / name_or_folder
    folder = Path(name_or_folder)
    if (folder / CONFIG).is_file():
        return folder
    known = f"the shipped ones are {', '.join(names)}" if names else "none is shipped"
    if folder.is_dir():
        raise UserError(f"{folder} is not a bundle, it has no {CONFIG}; give a bundle's folder ({known})")
    if folder.exists():
        raise UserError(f"{folder} is a file, no bundle; give a bundle's folder ({known})")
    raise UserError(f"no bundle {name_or_folder}; give a bundle's folder or a name ({known})")


def verify_files(folder: Path) -> None:
    """Compare every file with its checksum, which reads them all.

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
        data = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}; copy the bundle again") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found == 1:
        return format_1.read(data, str(path))
    if not isinstance(data, dict) or found != FORMAT:
        raise UserError(f"{path} has format {found!r}, this version reads 1 and {FORMAT}; upgrade unclip_jax")
    return BundleConfig.read(data, str(path))


def _stored(name: str, network: Network, params: Params, dtype: StoredDtype) -> dict[str, Stored]:
    """Return a network's weights by name, as they go to disk."""
    source = flatten(params)
    check_tensors(name, {key: tuple(value.shape) for key, value in source.items()}, _shapes(network))
    return {key: Stored(jnp.dtype(dtype), value, f"{name}: tensor {key}") for key, value in source.items()}


def _read_stats(path: Path, network: Network) -> EmbeddingStats:
    with open_safetensors(path, "the bundle") as file:
        found = {name: shape for name, shape in shapes_in(file).items() if name.startswith(STATS)}
        shape = (network.shared_sizes()["embed_dim"],)
        check_tensors(str(path), found, {f"{STATS}mean": shape, f"{STATS}std": shape})
        stats = {name: read_tensor(file, name, path) for name in found}
    check_finite(str(path), stats)
    return EmbeddingStats(**{name.removeprefix(STATS): value for name, value in stats.items()})


def _write_basis(path: Path, basis: Basis) -> None:
    tensors = vars(basis).items()
    write_safetensors(path, {name: Stored(np.dtype(np.float32), each, f"basis: {name}") for name, each in tensors})


def _read_basis(path: Path, network: Network) -> Basis:
    with open_safetensors(path, "the bundle") as file:
        found = shapes_in(file)
        count, width = found.get("components", (0,))[0], network.shared_sizes()["embed_dim"]
        check_tensors(str(path), found, {"mean": (width,), "components": (count, width), "variance": (count,)})
        basis = {name: read_tensor(file, name, path) for name in found}
    check_finite(str(path), basis)
    return Basis(**{name: jnp.asarray(value) for name, value in basis.items()})


def _read_params(network: Network, path: Path, dtype: DTypeLike, weights: bool, part: Network | None) -> Params:
    """Read the weights of a network, or of a `part` of it."""
    with open_safetensors(path, "the bundle") as file:
        found = {name: shape for name, shape in shapes_in(file).items() if not name.startswith(STATS)}
        check_tensors(str(path), found, _shapes(network))
        if not weights:
            return {}
        names = found if part is None else _shapes(part)
        return unflatten({name: _read_tensor(path, name, file, jnp.dtype(dtype)) for name in names})


def _read_tensor(path: Path, name: str, file: safe_open, dtype: np.dtype) -> jax.Array:
    # Converted on the host: on the device every shape would be one more program to compile.
    value = read_tensor(file, name, path).astype(dtype, copy=False)
    check_finite(str(path), {name: value})
    return jnp.asarray(value)


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flatten(network.abstract_params()).items()}


def _sha256(path: Path) -> str:
    return file_digest(path, hashlib.sha256)
