"""PyTorch checkpoints in, as bundles, and out again.

python -m unclip_jax.convert karlo FOLDER OUT              Karlo, text to image or variations, as the hub has it
python -m unclip_jax.convert karlo_original FOLDER OUT     the checkpoints that its authors released
python -m unclip_jax.convert kandinsky_prior FOLDER OUT    the prior of Kandinsky 2.1 or 2.2
python -m unclip_jax.convert hf_clip FOLDER OUT            a CLIP of Hugging Face, or one of its towers
python -m unclip_jax.convert open_clip SOURCE OUT          a CLIP of OpenCLIP's or OpenAI's
python -m unclip_jax.convert to_karlo BUNDLE OUT           a bundle as a folder that diffusers loads
python -m unclip_jax.convert to_hf_clip BUNDLE OUT         a bundle's CLIP as a folder that transformers loads

Adapters (LoRA), each [PART=]FILE[:STRENGTH], in any layout:

python -m unclip_jax.convert merge BUNDLE OUT --adapters A B:0.5     a bundle with adapters merged into its weights
python -m unclip_jax.convert carry BUNDLE OUT --adapters A           a bundle that carries adapters, by their names
python -m unclip_jax.convert adapter BUNDLE OUT --adapters A         one of a bundle's, written as PEFT writes it
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from unclip_jax.bundle import store
from unclip_jax.convert import adapter_commands, export, karlo
from unclip_jax.convert.config_files import stated_license
from unclip_jax.convert.hf_clip import import_clip
from unclip_jax.convert.kandinsky_prior import import_kandinsky_prior
from unclip_jax.convert.karlo_original import import_karlo_original
from unclip_jax.convert.mapping import Account
from unclip_jax.convert.open_clip import import_open_clip
from unclip_jax.core import command_line
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.systems.system import System


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """Options of every import."""

    source: tyro.conf.Positional[Path]
    """The PyTorch model, as it was downloaded."""
    out: tyro.conf.Positional[Path]
    """Folder of the bundle to make."""
    dtype: store.StoredDtype = "float32"
    """The type in which weights are stored."""
    name: str | None = None
    """The bundle's name; the folder's by default."""
    license: str | None = None
    """Licence of the weights; by default what a README.md beside them states, if anything."""
    overwrite: bool = False
    """Replace a bundle that is already there."""

    @property
    def called(self) -> str:
        """The bundle's name."""
        return self.name or self.out.resolve().name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Karlo(Import):
    """Karlo or its image variations: a folder with model_index.json, and one folder per component."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KarloOriginal(Import):
    """The checkpoints that Karlo's authors released, with ViT-L-14.pt and ViT-L-14_stats.th, in one folder."""

    tokenizer: Path | None = None
    """Folder of CLIP's tokenizer, which is not among those files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KandinskyPrior(Import):
    """The prior of Kandinsky 2.1 or 2.2 with its CLIP: a caption in, an image embedding out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HFClip(Import):
    """A CLIP of Hugging Face: both towers, or one of them with or without projection."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenClip(Import):
    """A CLIP of OpenCLIP's (a folder with open_clip_config.json) or of OpenAI's (a .pt file)."""

    config: str | None = None
    """What weights without it are of: an open_clip_config.json, or the name of the model, such as ViT-B-32-quickgelu,
    or openai."""

    tokenizer: Path | None = None
    """Folder of the tokenizer, where the source has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Options of every export."""

    bundle: tyro.conf.Positional[str]
    """A bundle's folder, or the name of a shipped one."""
    out: tyro.conf.Positional[Path]
    """Folder to make."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToKarlo(Export):
    """A bundle as a folder that diffusers' UnCLIPPipeline loads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToHFClip(Export):
    """A bundle's CLIP as a folder that transformers' CLIPModel, or a tower of it, loads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithAdapters(Export):
    """Options of what is made of adapters."""

    adapters: tuple[str, ...]
    """Adapters, each [PART=]FILE[:STRENGTH]."""
    overwrite: bool = False
    """Replace what is already there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge(WithAdapters):
    """A bundle with adapters merged into its weights, which then needs no file besides."""

    dtype: store.StoredDtype = "float32"
    """The type in which weights are stored."""
    name: str | None = None
    """The bundle's name; the folder's by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Carry(WithAdapters):
    """A bundle that carries adapters of its weights: `--adapters NAME` of the sample commands uses one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteAdapter(WithAdapters):
    """An adapter of any layout in PEFT's, OUT.safetensors, or OUT/pytorch_lora_weights.safetensors in a folder."""

    any_base: bool = False
    """Leave out which weights it was trained on, so that it can be used with others of that shape."""


Command = (
    Annotated[Karlo, tyro.conf.subcommand("karlo")]
    | Annotated[KarloOriginal, tyro.conf.subcommand("karlo_original")]
    | Annotated[KandinskyPrior, tyro.conf.subcommand("kandinsky_prior")]
    | Annotated[HFClip, tyro.conf.subcommand("hf_clip")]
    | Annotated[OpenClip, tyro.conf.subcommand("open_clip")]
    | Annotated[ToKarlo, tyro.conf.subcommand("to_karlo")]
    | Annotated[ToHFClip, tyro.conf.subcommand("to_hf_clip")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Carry, tyro.conf.subcommand("carry")]
    | Annotated[WriteAdapter, tyro.conf.subcommand("adapter")]
)


def main() -> None:
    """Parse the command line and run the command."""
    command = command_line.parse(Command, description=__doc__)
    if isinstance(command, WithAdapters):
        print(adapting(command))
        return
    if isinstance(command, Export):
        write = export.export_karlo if isinstance(command, ToKarlo) else export.export_clip
        store.check_place(command.out)
        write(store.load(command.bundle), command.out)
        print(f"wrote {command.out}")
        return
    if not command.source.exists():
        raise UserError(f"{command.source} does not exist; give a model as it was downloaded")
    store.check_place(command.out, overwrite=command.overwrite)
    system, accounts = read(command)
    # Weights are read while they are written, one tensor at a time.
    bundle_hash = store.save(system, command.out, dtype=command.dtype, overwrite=command.overwrite)
    for account in accounts:
        print(account)
    print(f"licence {system.license or 'not stated; --license states one'}")
    print(f"wrote {command.out} ({', '.join(system.networks)}), hash {bundle_hash}")


def adapting(command: WithAdapters) -> str:
    """Make what a command of adapters asks for, and say what was made."""
    if not command.adapters:
        raise UserError("there are no adapters; name at least one with --adapters FILE")
    folder, out = store.find(command.bundle), command.out
    match command:
        case Merge():
            store.check_place(out, overwrite=command.overwrite)
            system = adapter_commands.merged(folder, command.adapters, command.name or out.resolve().name)
            return f"wrote {out}, hash {store.save(system, out, dtype=command.dtype, overwrite=command.overwrite)}"
        case Carry():
            store.check_place(out, overwrite=command.overwrite)
            return f"wrote {out}, hash {adapter_commands.carry(folder, command.adapters, out)}"
        case WriteAdapter():
            path = adapter_commands.rewrite(
                folder, command.adapters, out, any_base=command.any_base, overwrite=command.overwrite
            )
            return f"wrote {path}"
    raise AssertionError(command)


def read(command: Import) -> tuple[System, list[Account]]:
    """Return the system that a command describes, its numbers still in the files, and what became of each tensor."""
    source, name = command.source, command.called
    license = stated_license(source) if command.license is None else command.license
    match command:
        case Karlo():
            return karlo.import_karlo(source, name, license)
        case KarloOriginal():
            return import_karlo_original(source, name, license, command.tokenizer)
        case KandinskyPrior():
            return import_kandinsky_prior(source, name, license)
        case HFClip():
            return import_clip(source, name, license)
        case OpenClip():
            return import_open_clip(source, name, license, command.tokenizer, command.config)
    raise AssertionError(command)


if __name__ == "__main__":
    run_cli(main)
