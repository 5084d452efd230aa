"""python -m unclip_jax.bundle info BUNDLE        what a bundle is, and whether it is whole"""

import dataclasses
import sys

import tyro

from unclip_jax.bundle.store import carried, find, load, verify_files
from unclip_jax.core import command_line
from unclip_jax.core.config import to_json
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.program import as_typed, program
from unclip_jax.core.typing import JsonDict
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.parameters import parameter_count
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems.system import System


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """What a bundle is: networks, sizes, embedding space, licence; then checks every file and tensor."""

    bundle: tyro.conf.Positional[str]
    """A folder, or the name of a shipped bundle."""


def main() -> None:
    """Parse the command line and run the command."""
    if sys.argv[1:2] == ["pack"]:
        raise UserError("pack is a command of training now; run python -m train.pack")
    if sys.argv[1:2] == ["info"]:
        del sys.argv[1]
    elif not {"-h", "--help"} & set(sys.argv):
        raise UserError(as_typed("say what to do: python -m unclip_jax.bundle info BUNDLE"))
    options: Info = command_line.parse(Info, prog=f"{program()} info", description=__doc__)
    info(options.bundle)


def info(name_or_folder: str) -> None:
    """Print what a bundle is. Everything is checked first, so that what is printed is true."""
    folder = find(name_or_folder)
    system = load(folder, weights=False)
    verify_files(folder)
    print(f"{system.name}: {system.description or 'no description'}")
    print(f"folder       {folder}")
    print(f"hash         {system.hash}")
    print(f"licence      {system.license or 'not stated'}")
    print(f"embeddings   {_embedding_space(system)}")
    if system.tokenizer is not None:
        print(f"tokenizer    {system.tokenizer.vocab_size} tokens, {system.tokenizer.identity[:12]}")
    for name, network in system.networks.items():
        count = parameter_count(network.abstract_params())
        size = (folder / f"{name}.safetensors").stat().st_size
        about = system.stages[name].describe() if name in system.stages else network.describe()
        print(f"{name:<12} {count:>13,} parameters {size / 1e6:>9.1f} MB   {about}")
        if name in system.sampling:
            settings = ", ".join(f"{key} {value}" for key, value in _worth_telling(system.sampling[name]).items())
            print(f"{'':<12} sampled with {settings}")
    if adapters := carried(folder):
        print(f"adapters     {', '.join(adapters)}")
    print("checks       every file as written, every tensor as the specs say, parts fit each other")


def _worth_telling(settings: SamplingSettings) -> JsonDict:
    """Return the steps of a stage's sampling, and whatever is not the default."""
    default = to_json(SamplingSettings())
    return {key: value for key, value in to_json(settings).items() if key == "steps" or value != default[key]}


def _embedding_space(system: System) -> str:
    sizes = {}
    for network in system.networks.values():
        sizes |= network.shared_sizes()
    if "embed_dim" not in sizes:
        return "none"
    facts = [f"{sizes['embed_dim']} wide"]
    facts += [f"{clip.embedding} length" for clip in system.networks.values() if isinstance(clip, CLIPSpec)]
    identity = next(iter(system.identities.values()), None)
    return ", ".join([*facts, f"CLIP {identity[:12] if identity else 'not recorded'}"])


if __name__ == "__main__":
    run_cli(main)
