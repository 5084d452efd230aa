"""Measure a bundle on images with captions, and keep what was found in its folder: for probing and Analytic-DPM.

    python -m train.measure BUNDLE --data FOLDER [--examples 2048]

    basis          principal components of z_i (`unclip_jax.editing.probing`)
    x0_variance    of the prior, where there is one (`unclip_jax.diffusion.samplers.analytic`, equation 3)

The folder is replaced whole, weights as they were, and its hash changes with what it holds.
"""

import dataclasses
import sys

import numpy as np
import tyro

from unclip_jax.bundle import store
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import try_writing
from unclip_jax.data.sources import open_source
from unclip_jax.editing.probing import fit_basis
from unclip_jax.training.statistics import measure_system


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a bundle on images with captions, and write what was found into it."""

    bundle: tyro.conf.Positional[str]
    """A bundle's folder, which is changed."""
    data: str = "captioned_shapes"
    """A folder of images with captions, or the data set of shapes."""
    data_dir: str = "data"
    """Where the data set of shapes is, or is made."""
    examples: int = 2048
    """Images to measure."""
    components: int | None = None
    """Principal components to keep; all of them by default."""
    batch_size: int = 64
    """Images at once."""
    seed: int = 0
    """Of the order and the noise."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.examples < self.batch_size:
            found = f"{self.examples} examples in batches of {self.batch_size}"
            raise UserError(f"{found}; give a batch of 1 or more, and at least as many examples")


def main() -> None:
    """Measure, write, and say what was found."""
    options: Options = command_line.parse(Options, description=__doc__)
    compilation_cache.enable()
    try_writing(store.find(options.bundle))
    system = store.load(options.bundle)
    source = open_source(options.data, "train", options.data_dir)
    if len(source) < options.examples:
        print(f"{len(source)} images are there, so {options.examples} examples repeat them", file=sys.stderr)
    sizes = {"num_examples": options.examples, "batch_size": options.batch_size, "seed": options.seed}
    z_i, x0_variance = measure_system(system, source, **sizes, report=lambda line: print(line, file=sys.stderr))
    basis = fit_basis(z_i, options.components)
    bundle_hash = store.add_statistics(store.find(options.bundle), basis, x0_variance)
    share = np.asarray(basis.variance) / np.square(z_i - z_i.mean(0)).sum(1).mean()
    half = 1 + int(np.searchsorted(np.cumsum(share), 0.5))
    print(f"{len(share)} components, the first {half} of which hold half of the variance of {len(z_i)} embeddings")
    for name, found in x0_variance.items():
        low, high = found.variance[0], found.variance[-1]
        print(f"the {name}'s x_0 is off by {low:.2g} (mean square) at the least noise, {high:.2g} at the most")
    print(f"wrote {store.find(options.bundle)}, hash {bundle_hash}")


if __name__ == "__main__":
    run_cli(main)
