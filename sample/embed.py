"""CLIP image embeddings of captions, by the prior alone, for other decoders than the bundle's.

    python -m sample.embed "a red circle" --bundle demo --out out/z.npz
    python -m sample.embed --prompts prompts.txt --bundle kandinsky --out out/z.npz

The file holds `prompts` [n] and `z_i` [n d].
"""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from unclip_jax.bundle import store
from unclip_jax.core import compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import check_writable, write_all
from unclip_jax.core.npz import write_npz
from unclip_jax.sampling.captions import report_truncation
from unclip_jax.sampling.overrides import parse
from unclip_jax.sampling.text_to_image import text_to_embedding

from .options import Request, chosen_settings, load
from .prompts import read_prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Request):
    """CLIP image embeddings of captions."""

    prompt: Annotated[str | None, tyro.conf.Positional] = None
    """The caption."""
    prompts: Path | None = None
    """A text file with one caption a line, instead."""
    seed: int = 0
    """Another seed, other embeddings; the same seed, the same, and those that `text_to_image` decodes."""
    out: Path = Path("out/z.npz")
    """The .npz to write."""


def main() -> None:
    """Embed and save."""
    options = parse(Options, __doc__)
    options.check()
    if options.out.suffix != ".npz":
        raise UserError(f"{options.out} does not end in .npz; give a name that does")
    check_writable([options.out], overwrite=options.overwrite)
    prompts = read_prompts(options.prompt, options.prompts)
    compilation_cache.enable()
    described = store.load(options.bundle, weights=False)
    name = described.writer("z_i")
    system = load(options, (*described.stages[name].encoders, name))
    settings = chosen_settings(system, options, [name])[name]
    sizes = {"seed": options.seed, "batch_size": options.batch_size}
    with report_truncation():
        z_i = text_to_embedding(system, prompts, settings=settings, **sizes)
    written = write_all([(options.out, functools.partial(write_npz, prompts=np.array(prompts), z_i=z_i))])
    print(*written)


if __name__ == "__main__":
    run_cli(main)
