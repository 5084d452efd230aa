"""From the checkpoints of training runs, and what another bundle has already, to a bundle.

Each run says in its checkpoint's meta what its weights are: `config["model"]` and `config["process"]` are the
spec and the diffusion, and `extra` holds what else belongs to them,

    tokenizer       the fields of `Tokenizer`                      every run that reads captions
    clip_identity   `identity` of the CLIP it was trained with     prior and decoder
    stats           {"mean": [...], "std": [...]} of z_i           prior
    low_res_size    side in pixels                                 upsampler
    sampling        `StageSettings` as JSON                        all but CLIP
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from unclip_jax.bundle.parts import SPECS, Bundle, Kind, Part, identity
from unclip_jax.core.config import from_json
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.models.prior import EmbeddingStats
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.checkpoint import load_params


def assemble(
    *,
    clip: Path | None = None,
    prior: Path | None = None,
    decoder: Path | None = None,
    upsamplers: Sequence[Path] = (),
    base: Bundle | None = None,
    name: str,
    license: str,
    description: str,
) -> Bundle:
    """A bundle of the moving averages in the newest checkpoints of the given runs.

    Args:
        clip, prior, decoder: workdirs; None leaves the part out, or as it is in `base`.
        upsamplers: workdirs in the order in which they are applied, instead of all those in `base`.
        base: a bundle with what the runs do not make.
        name, license, description: as in `Bundle`.

    Raises:
        UserError: if there is no checkpoint, if it is of another kind, or if the tokenizers differ.
    """
    runs: dict[str, tuple[Kind, Path]] = {}
    if clip is not None:
        runs["clip"] = ("clip", clip)
    if prior is not None:
        runs["prior"] = ("prior", prior)
    if decoder is not None:
        runs["decoder"] = ("decoder", decoder)
    runs |= {f"upsampler_{index}": ("upsampler", path) for index, path in enumerate(upsamplers)}
    if base is None:
        base = Bundle(name=name, parts={})
    if not runs and not base.parts:
        raise UserError("nothing to pack; give at least one run")
    gone = {part for part in base.parts if part.startswith("upsampler_") and upsamplers}
    parts = {part_name: part for part_name, part in base.parts.items() if part_name not in gone}
    sampling = {part_name: how for part_name, how in base.sampling.items() if part_name not in gone | runs.keys()}
    stats, tokenizer = base.stats, base.tokenizer
    for part_name, (kind, path) in runs.items():
        parts[part_name], extra = _read_run(kind, path)
        if extra.get("sampling"):
            sampling[part_name] = from_json(StageSettings, extra["sampling"], f"{path}: sampling")
        if "stats" in extra:
            mean, std = (jnp.asarray(extra["stats"][key], jnp.float32) for key in ("mean", "std"))
            stats = EmbeddingStats(mean=mean, std=std)
        if "tokenizer" in extra:
            own = from_json(Tokenizer, extra["tokenizer"], f"{path}: tokenizer")
            if tokenizer is not None and own != tokenizer:
                raise UserError(f"{path} has another tokenizer than those before; pack runs that share one")
            tokenizer = own
    return Bundle(
        name=name,
        license=license,
        description=description,
        parts=parts,
        sampling=sampling,
        tokenizer=tokenizer,
        stats=stats,
        # Principal components are those of one CLIP's embeddings.
        basis=base.basis if clip is None else None,
    )


def _read_run(kind: Kind, path: Path) -> tuple[Part, dict[str, Any]]:
    params, meta = load_params(path, "ema")
    if meta["kind"] != kind:
        raise UserError(f"{path} is a {meta['kind']} run, not a {kind} run; give each under its own option")
    config, extra = meta["config"], meta["extra"]
    process = config.get("process")
    part = Part(
        kind=kind,
        spec=from_json(SPECS[kind], config["model"], f"{path}: model"),
        process=None if process is None else from_json(ProcessSpec, process, f"{path}: process"),
        params=params,
        clip_identity=identity(params) if kind == "clip" else extra.get("clip_identity"),
        low_res_size=extra.get("low_res_size"),
    )
    return part, extra
