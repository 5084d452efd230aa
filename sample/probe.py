"""See what CLIP keeps of an image, from coarse to fine: decode the first principal components of its embedding.

    python -m sample.probe photo.png --components 1 2 4 8 16 all --bundle demo --out out/probe.png

All are decoded from one noise, so that what differs is what the components say. The components are the bundle's, or
those of an .npz (`--basis`) with `mean` [d], `components` [k d] and `variance` [k], the strongest first.
"""

import dataclasses
from pathlib import Path
from typing import Literal, cast

import jax.numpy as jnp
import numpy as np

from sample.common import FromImages
from sample.output import Output
from sample.points import decode_points, points_of, read_npz, source_names, with_originals
from unclip_jax.bundle import store
from unclip_jax.bundle.basis import Basis
from unclip_jax.bundle.parts import Bundle
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.editing.probing import project
from unclip_jax.models.clip import CLIPSpec


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


def run(options: Options) -> None:
    """Draws and saves."""
    names = source_names(options)
    count = len(options.components)
    files = [f"{name}_{kept}" for name in names for kept in options.components]
    if len(set(files)) < len(files):
        raise UserError("a number of components is given twice; give each once")
    output = Output("sample.probe", options, files)
    compilation_cache.enable()
    bundle = store.load(options.bundle)
    basis = read_basis(bundle, options.basis)
    numbers = [len(basis.components) if kept == "all" else kept for kept in options.components]
    inverted = options.points is not None
    points, settings = points_of(bundle, options, inverted=inverted)
    projected = [np.asarray(project(jnp.asarray(points.z_i), basis, kept)) for kept in numbers]
    z_i = np.stack(projected, axis=1).reshape(-1, points.z_i.shape[1])
    source = np.repeat(np.arange(len(names)), count)
    images = decode_points(
        bundle,
        options,
        settings,
        z_i,
        x_T=None if points.x_T is None else points.x_T[source],
        indices=np.zeros_like(source),
    )
    kept = [str(kept) for kept in options.components]
    about = {"images": "\n".join(names), "components": " ".join(kept)}
    each = [{"image": names[i], "components": kept[row % count]} for row, i in enumerate(source)]
    output.save(bundle, settings, images, about, each, with_originals(options, images, count))


def read_basis(bundle: Bundle, path: Path | None) -> Basis:
    """The components of a file, or of the bundle."""
    if path is not None:
        width = cast(CLIPSpec, bundle.part("clip").spec).embed_dim
        shapes = {"mean": (width,), "components": ("k", width), "variance": ("k",)}
        return Basis(**{name: jnp.asarray(array) for name, array in read_npz(path, shapes)[0].items()})
    if bundle.basis is None:
        make = "python -m unclip_jax.eval.statistics BUNDLE --data FOLDER"
        raise UserError(f"bundle {bundle.name} has no principal components; run {make}, or give --basis FILE.npz")
    return bundle.basis


def main() -> None:
    """Reads the options and runs."""
    run(command_line.parse(Options, prog="python -m sample.probe", description=__doc__))


if __name__ == "__main__":
    run_cli(main)
