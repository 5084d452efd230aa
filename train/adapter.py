"""Write the adapter (LoRA) that a run has trained as a file, in PEFT's layout.

python -m train.adapter runs/x/decoder x.safetensors       then  --adapters x.safetensors:0.8  draws with it

A name that does not end in .safetensors is a folder, as diffusers' `load_lora_adapter` takes one.
"""

import dataclasses
from pathlib import Path

import numpy as np
import tyro

from unclip_jax.adapters.lora import layers_of
from unclip_jax.convert.adapter_files import WEIGHTS
from unclip_jax.convert.adapters import save_adapter
from unclip_jax.core import command_line
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import check_writable
from unclip_jax.models.parameters import flatten, unflatten
from unclip_jax.systems.adapting import Adapter
from unclip_jax.training.belongings import Belongings
from unclip_jax.training.checkpoint import read_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Write the adapter of a run: the moving average in its newest checkpoint."""

    run: tyro.conf.Positional[Path]
    """Workdir of a run with --lora.rank above 0."""
    out: tyro.conf.Positional[Path]
    """A .safetensors to write, or a folder for one."""
    overwrite: bool = False
    """Replace what is already there."""


def write(run: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the adapter of `run`, and return the file."""
    path = out if out.suffix == ".safetensors" else out / WEIGHTS
    check_writable([path], overwrite=overwrite)
    params, meta = read_params(run)
    own = Belongings.of_meta(meta, str(run))
    if own.adapter is None or own.stage is None:
        raise UserError(f"{run} trains whole weights; pack it with train.pack, or train with --lora.rank above 0")
    params = unflatten({name: np.asarray(value) for name, value in flatten(params).items()})
    scales = dict.fromkeys(layers_of(params), own.adapter.lora.scale)
    part = own.adapter.part or str(meta["kind"])
    adapter = Adapter(name=str(run), part=part, params=params, scales=scales, base=own.adapter.base)
    save_adapter(path, adapter, own.stage.network)
    return path


def main() -> None:
    """Read the options and write."""
    options = command_line.parse(Options, description=__doc__)
    print(f"wrote {write(options.run, options.out, overwrite=options.overwrite)}")


if __name__ == "__main__":
    run_cli(main)
