"""See what CLIP keeps of an image, from coarse to fine: decode the first principal components of its embedding.

    python -m sample.probe photo.png --components 1 2 4 8 16 all --bundle demo --out out/probe.png

All are decoded from one noise, so that what differs is what the components say. The components are the bundle's, or
those of an .npz (`--basis`) with `mean` [d], `components` [k d] and `variance` [k], the strongest first.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.editing.probing import basis_of, project
from unclip_jax.sampling.overrides import parse

from .options import FromImages, Job, latents_of, open_session, with_originals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(FromImages):
    """See what CLIP keeps of images, from coarse to fine."""

    components: tuple[int | Literal["all"], ...] = (1, 2, 4, 8, 16, "all")
    """How many components to keep; 0 is the mean of all images."""
    basis: Path | None = None
    """An .npz of components, in place of the bundle's own."""
    out: Path = Path("out/probe.png")
    """A .png with a row per image, the image itself first; or a folder for a file per image and number."""

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return super().inputs() + ([] if self.basis is None else [self.basis])

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        if not self.components:
            raise UserError("no components given; give one or more numbers, as in --components 1 4 all")
        if len(set(self.components)) < len(self.components):
            raise UserError("a number of components is given twice; give each once")


def run(options: Options) -> None:
    """Draw and save."""
    names, count = options.names(), len(options.components)
    options.check_count(len(names), count)
    job = Job.start("probe", options, [f"{name}_{kept}" for name in names for kept in options.components])
    session = open_session(options)
    basis = basis_of(session.system, options.basis)
    numbers = [len(basis.components) if kept == "all" else kept for kept in options.components]
    latents, settings, decode = latents_of(session.system, options, inverted=options.latents is not None)
    projected = [np.asarray(project(jnp.asarray(latents.z_i), basis, kept)) for kept in numbers]
    z_i = np.stack(projected, axis=1).reshape(-1, latents.z_i.shape[1])
    source = np.repeat(np.arange(len(names)), count)
    x_T = None if latents.x_T is None else latents.x_T[source]
    images = decode(session, z_i, x_T=x_T, indices=np.zeros_like(source), only=options.only)
    kept = [str(kept) for kept in options.components]
    about = {"images": "\n".join(names), "components": " ".join(kept)}
    each = [{"image": names[i], "components": kept[row % count]} for row, i in enumerate(source)]
    job.save(session.system, settings, images, about, each, with_originals(options, images, count))


def main() -> None:
    """Read the options and run."""
    run(parse(Options, __doc__))


if __name__ == "__main__":
    run_cli(main)
