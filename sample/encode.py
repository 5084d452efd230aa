"""CLIP embeddings of a folder of images, and of their captions where they have some.

    python -m sample.encode PHOTOS --bundle demo --out out/embeddings.npz

The file holds `names` [n], `z_i` [n d] and, with `--captions`, `z_t` [n d].
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from sample.output import check_free, write_npz
from unclip_jax.bundle import store
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.data.folder import FolderSource
from unclip_jax.images.pixels import to_float
from unclip_jax.images.transforms import fit
from unclip_jax.models import clip
from unclip_jax.models.clip import CLIPSpec


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
    """Largest share of the images that may be unreadable."""


def main() -> None:
    """Encodes and saves."""
    options: Options = command_line.parse(Options, prog="python -m sample.encode", description=__doc__)
    if options.batch_size < 1:
        raise UserError(f"batch_size is {options.batch_size}; it must be at least 1")
    if options.out.suffix != ".npz":
        raise UserError(f"{options.out} does not end in .npz; give a name that does")
    check_free([options.out], overwrite=options.overwrite)
    compilation_cache.enable()
    bundle = store.load(options.bundle, parts=("clip",))
    part = bundle.part("clip")
    spec = cast(CLIPSpec, part.spec)
    source = FolderSource(options.folder, max_bad_share=options.max_bad_share, captions=options.captions)
    encode_image = jax.jit(functools.partial(clip.encode_image, spec))
    encode_text = jax.jit(lambda params, tokens: clip.encode_text(spec, params, tokens).z_t)

    names, embeddings = [], {"z_i": [], "z_t": []}
    for first in range(0, len(source), options.batch_size):
        # The last batch is padded, so that it runs the program of the others.
        rows = range(first, first + min(options.batch_size, len(source)))
        records = [source[min(row, len(source) - 1)] for row in rows]
        real = len(records[: len(source) - first])
        names += [record.name for record in records[:real]]
        images = np.stack([fit(Image.fromarray(record.image), spec.image_tower.image_size) for record in records])
        embeddings["z_i"].append(np.asarray(encode_image(part.params, jnp.asarray(to_float(images))))[:real])
        if options.captions and bundle.tokenizer is not None:
            encoded = bundle.tokenizer.encode([record.caption for record in records], spec.text_tower.context)
            embeddings["z_t"].append(np.asarray(encode_text(part.params, jnp.asarray(encoded.tokens)))[:real])
        print(f"encoded {len(names)} of {len(source)}", file=sys.stderr)
    arrays = {name: np.concatenate(parts) for name, parts in embeddings.items() if parts}
    write_npz(options.out, names=np.array(names), **arrays)
    print(options.out)


if __name__ == "__main__":
    run_cli(main)
