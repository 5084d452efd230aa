"""python -m unclip_jax.bundle info BUNDLE        what it is, and whether it is whole
python -m unclip_jax.bundle pack OUT ...       makes one from the checkpoints of training runs, and from another bundle
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from unclip_jax.bundle.check import check_fit
from unclip_jax.bundle.pack import assemble
from unclip_jax.bundle.parts import Bundle, Part, flatten
from unclip_jax.bundle.sampling import changed
from unclip_jax.bundle.store import StoredDtype, find, load, save, verify_files
from unclip_jax.core import command_line
from unclip_jax.core.config import to_json
from unclip_jax.core.errors import run_cli
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.stages.settings import StageSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """What a bundle is: parts, sizes, embedding space, licence; then checks every file and tensor."""

    bundle: tyro.conf.Positional[str]
    """A folder, or the name of a shipped bundle."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack:
    """Makes a bundle from the moving averages in the newest checkpoints of training runs."""

    out: tyro.conf.Positional[Path]
    """Folder to make."""
    clip: Path | None = None
    """Workdir of the CLIP."""
    prior: Path | None = None
    """Workdir of the prior."""
    decoder: Path | None = None
    """Workdir of the decoder."""
    upsamplers: tuple[Path, ...] = ()
    """Workdirs of the upsamplers, the first one first."""
    base: str | None = None
    """A bundle, or the name of a shipped one, from which all comes that is not given here."""
    dtype: StoredDtype = "float32"
    """What the weights are stored as."""
    name: str | None = None
    """What to call it; the folder's name by default."""
    license: str | None = None
    """Licence of the weights; that of the base, or Apache-2.0."""
    description: str | None = None
    """What it was trained on and is good for; by default what the base says."""
    sampling: tuple[str, ...] = ()
    """Sampling settings that replace those of the runs, as in decoder.guidance_scale=2 prior.steps=25."""
    overwrite: bool = False
    """Replace a bundle that is already there."""


Command = Annotated[Info, tyro.conf.subcommand("info")] | Annotated[Pack, tyro.conf.subcommand("pack")]


def main() -> None:
    """Parses the command line and runs the command."""
    command: Info | Pack = command_line.parse(Command, prog="python -m unclip_jax.bundle")
    info(command.bundle) if isinstance(command, Info) else pack(command)


def info(name_or_folder: str) -> None:
    """Prints what a bundle is. Everything is checked first, so that what is printed is true."""
    folder = find(name_or_folder)
    bundle = load(folder, weights=False)
    verify_files(folder)
    print(f"{bundle.name}: {bundle.description or 'no description'}")
    print(f"folder       {folder}")
    print(f"hash         {bundle.hash}")
    print(f"licence      {bundle.license or 'not stated'}")
    print(f"embeddings   {_embedding_space(bundle)}")
    if bundle.tokenizer is not None:
        print(f"tokenizer    {bundle.tokenizer.vocab_size} tokens, {bundle.tokenizer.identity[:12]}")
    for name, part in bundle.parts.items():
        count = sum(int(np.prod(leaf.shape)) for leaf in flatten(part.abstract_params()).values())
        size = (folder / f"{name}.safetensors").stat().st_size
        print(f"{name:<12} {count:>13,} parameters {size / 1e6:>9.1f} MB   {_describe(part)}")
        if name in bundle.sampling:
            settings = ", ".join(f"{key} {value}" for key, value in _told(bundle.sampling[name]).items())
            print(f"{'':<12} sampled with {settings}")
    print("checks       every file as written, every tensor as the specs say, parts fit each other")


def pack(command: Pack) -> None:
    """Assembles and writes a bundle."""
    base = Bundle(name="", license="Apache-2.0", parts={}) if command.base is None else load(command.base)
    bundle = assemble(
        clip=command.clip,
        prior=command.prior,
        decoder=command.decoder,
        upsamplers=command.upsamplers,
        base=base,
        name=command.name or command.out.resolve().name,
        license=base.license if command.license is None else command.license,
        description=base.description if command.description is None else command.description,
    )
    bundle = dataclasses.replace(bundle, sampling=changed(bundle.sampling, command.sampling))
    check_fit(bundle)
    bundle_hash = save(bundle, command.out, dtype=command.dtype, overwrite=command.overwrite)
    print(f"wrote {command.out} ({', '.join(bundle.parts)}), hash {bundle_hash}")


def _told(settings: StageSettings) -> dict[str, Any]:
    """What is worth telling of how a part is sampled: its steps, and whatever is not the default."""
    default = to_json(StageSettings())
    return {key: value for key, value in to_json(settings).items() if key == "steps" or value != default[key]}


def _embedding_space(bundle: Bundle) -> str:
    parts = bundle.parts.values()
    widths = {part.spec.embed_dim for part in parts if part.spec.embed_dim is not None}
    if not widths:
        return "none"
    facts = [f"{widths.pop()} wide"]
    facts += [f"{part.spec.embedding} length" for part in parts if isinstance(part.spec, CLIPSpec)]
    identities = {part.clip_identity[:12] for part in parts if part.clip_identity is not None}
    return ", ".join([*facts, f"CLIP {identities.pop() if identities else 'not recorded'}"])


def _describe(part: Part) -> str:
    spec, process = part.spec, part.process
    if isinstance(spec, CLIPSpec):
        towers = [f"images {spec.vision.image_size} px"] if spec.vision is not None else []
        return ", ".join(towers + ([f"captions {spec.text.context} tokens"] if spec.text is not None else []))
    diffusion = f"{process.num_steps} {process.schedule} steps, predicts {process.prediction}" if process else ""
    if isinstance(spec, PriorSpec):
        return f"width {spec.width}, depth {spec.depth}; {diffusion}"
    sizes = f"{part.low_res_size} -> {spec.image_size} px" if part.low_res_size else f"{spec.image_size} px"
    return f"{sizes}; {diffusion}{'; inpaints' if spec.inpaints else ''}"


if __name__ == "__main__":
    run_cli(main)
