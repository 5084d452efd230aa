"""Make a bundle from the checkpoints of training runs, and from another bundle.

python -m train.pack OUT --clip runs/x/clip --prior runs/x/prior --decoder runs/x/decoder --upsamplers runs/x/up_64
"""

import dataclasses
from pathlib import Path

import tyro

from unclip_jax.bundle.check import check_fit
from unclip_jax.bundle.store import StoredDtype, check_place, load, save
from unclip_jax.core.errors import run_cli
from unclip_jax.sampling.overrides import Overrides, override, parse
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.training.export import assemble_unclip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Make a bundle from the moving averages in the newest, or the best, checkpoints of training runs."""

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
    best: bool = False
    """Take the checkpoints that were the best on held-out examples, instead of the newest."""
    dtype: StoredDtype = "float32"
    """What the weights are stored as."""
    name: str | None = None
    """What to call it; the folder's name by default."""
    license: str | None = None
    """Licence of the weights; by default that of the weights that come from the base or that a run started from."""
    description: str | None = None
    """What it was trained on and is good for; by default what the base says."""
    settings: Overrides = dataclasses.field(default_factory=dict)
    """Sampling settings that replace those of the runs."""
    overwrite: bool = False
    """Replace a bundle that is already there."""


def main() -> None:
    """Assemble and write a bundle."""
    options: Options = parse(Options, description=__doc__)
    check_place(options.out, overwrite=options.overwrite)
    base = None if options.base is None else load(options.base)
    system = assemble_unclip(
        clip=options.clip,
        prior=options.prior,
        decoder=options.decoder,
        upsamplers=options.upsamplers,
        base=base,
        name=options.name or options.out.resolve().name,
        license=options.license,
        step="best" if options.best else None,
        description=options.description or (base.description if base is not None else ""),
    )
    chosen = override(system, options.settings)
    # A stage that has no settings, and is given none, gets none.
    sampling = {name: own for name, own in chosen.items() if name in system.sampling or own != SamplingSettings()}
    system = dataclasses.replace(system, sampling=sampling)
    check_fit(system)
    bundle_hash = save(system, options.out, dtype=options.dtype, overwrite=options.overwrite)
    print(f"licence {system.license or 'not stated; --license states one'}")
    print(f"wrote {options.out} ({', '.join(system.networks)}), hash {bundle_hash}")


if __name__ == "__main__":
    run_cli(main)
