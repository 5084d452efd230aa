"""CLIP embeddings of a folder of images, and of their captions where they have some.

    python -m sample.encode PHOTOS --bundle demo --out out/embeddings.npz

The file holds `names` [n], `z_i` [n d] and, with `--captions`, `z_t` [n d], of the first caption where an image has
several.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from unclip_jax.bundle import store
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import check_writable, write_all
from unclip_jax.core.npz import write_npz
from unclip_jax.core.unicode import printable
from unclip_jax.data.folder import FolderSource
from unclip_jax.editing.embeddings import embed_captions, embed_images
from unclip_jax.images.pixels import to_float
from unclip_jax.images.transforms import fit
from unclip_jax.sampling.batching import batches_of, joined

from .options import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """CLIP embeddings of a folder of images."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Images of any size and kind; each is cropped to its central square."""
    bundle: str = "demo"
    """A bundle's folder, or the name of a shipped one."""
    out: Path = Path("out/embeddings.npz")
    """The .npz to write."""
    overwrite: bool = False
    """Replace what is already there."""
    captions: bool = False
    """Encode the captions too (x.txt beside x.jpg, metadata.jsonl or metadata.csv)."""
    batch_size: int = 32
    """Images encoded at once."""
    max_bad_share: float = 0.01
    """Largest share of the images, and rows of their metadata, that may be unusable; they are left out."""
    min_side: int = 8
    """Images with fewer pixels along their shorter side are left out."""


def main() -> None:
    """Encode and save."""
    options: Options = command_line.parse(Options, description=__doc__)
    if options.batch_size < 1:
        raise UserError(f"batch_size is {options.batch_size}; it must be at least 1")
    if options.out.suffix != ".npz":
        raise UserError(f"{options.out} does not end in .npz; give a name that does")
    check_writable([options.out], overwrite=options.overwrite)
    compilation_cache.enable()
    system = store.load(options.bundle, parts=("clip",))
    size = system.encoder("clip").clip.image_tower.image_size
    source = FolderSource(
        options.folder, max_bad_share=options.max_bad_share, min_side=options.min_side, captions=options.captions
    )
    count, names = len(source), []
    z_i: dict[int, np.ndarray] = {}
    z_t: dict[int, np.ndarray] = {}
    for first, rows in batches_of(count, min(options.batch_size, count)):
        records = [source.read(row) for row in rows.tolist()]
        names += [record.name for record in records[: count - first]]
        images = np.stack([fit(Image.fromarray(record.image), size) for record in records])
        z_i[first] = np.asarray(embed_images(system, jnp.asarray(to_float(images))))
        if options.captions and system.tokenizer is not None:
            z_t[first] = np.asarray(embed_captions(system, [record.captions[0] for record in records]))
        say(f"encoded {len(names)} of {count}")
    arrays = {name: joined(made, count) for name, made in {"z_i": z_i, "z_t": z_t}.items() if made}
    arrays = {"names": np.array([printable(name) for name in names]), **arrays}
    written = write_all([(options.out, functools.partial(write_npz, **arrays))])
    print(*written)


if __name__ == "__main__":
    run_cli(main)
