"""CLIP image embeddings of captions, by the prior alone, for other decoders than the bundle's.

    python -m sample.embed "a red circle" --bundle demo --out out/z.npz
    python -m sample.embed --prompts prompts.txt --bundle kandinsky --out out/z.npz

The file holds `prompts` [n] and `z_i` [n d].
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from sample.common import Prior, cuts_told, overlay
from sample.output import check_free, write_npz
from sample.text_to_image import read_prompts
from unclip_jax.bundle import store
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text_to_image import text_to_embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """CLIP image embeddings of captions."""

    prompt: Annotated[str | None, tyro.conf.Positional] = None
    """The caption."""
    prompts: Path | None = None
    """A text file with one caption a line, instead."""
    bundle: str = "demo"
    """A bundle with CLIP and a prior: a folder, or the name of a shipped one."""
    seed: int = 0
    """Another seed, other embeddings; the same seed, the same, and those that `text_to_image` decodes."""
    out: Path = Path("out/z.npz")
    """The .npz to write."""
    overwrite: bool = False
    """Replace what is already there."""
    batch_size: int = 16
    """Captions embedded at once."""
    prior: Prior = Prior()


def main() -> None:
    """Embeds and saves."""
    options: Options = command_line.parse(Options, prog="python -m sample.embed", description=__doc__)
    if options.out.suffix != ".npz":
        raise UserError(f"{options.out} does not end in .npz; give a name that does")
    check_free([options.out], overwrite=options.overwrite)
    prompts = read_prompts(options.prompt, options.prompts)
    compilation_cache.enable()
    bundle = store.load(options.bundle, parts=("clip", "prior"))
    settings = overlay(bundle.sampling.get("prior", StageSettings()), vars(options.prior))
    with cuts_told():
        z_i = text_to_embedding(bundle, prompts, seed=options.seed, settings=settings, batch_size=options.batch_size)
    write_npz(options.out, prompts=np.array(prompts), z_i=z_i)
    print(options.out)


if __name__ == "__main__":
    run_cli(main)
