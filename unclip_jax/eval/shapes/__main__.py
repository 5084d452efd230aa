"""The share of images that show what a caption of shapes says, judged from the pixels by `checker`.

    python -m unclip_jax.eval.shapes --bundle demo --prompts 256

One object or two with a relation, of colour-shape pairs seen or never seen in training; and each group judged by the
captions of its neighbours, which is what chance looks like. `--true-renders` judges the renderer's own images instead,
which measures the checker.
"""

import dataclasses
import functools
import math
import sys
from pathlib import Path

import numpy as np

from unclip_jax.bundle import store
from unclip_jax.core import compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import write_all
from unclip_jax.data.captioned_shapes.render import render
from unclip_jax.eval.shapes.cases import CRITERIA, GROUPS, cases, evaluate
from unclip_jax.images.pixels import grid
from unclip_jax.images.png import check_png, save_png
from unclip_jax.sampling import overrides
from unclip_jax.sampling.text_to_image import text_to_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Sample images of captions of shapes and count what is right."""

    bundle: str = "demo"
    """A bundle's folder, or the name of a shipped one."""
    prompts: int = 256
    """Prompts in all, a quarter of them in each group."""
    seed: int = 0
    """Of the images; the prompts are always the first of the test splits."""
    stop_at: int | None = None
    """Judge the images of this many pixels instead of the last ones."""
    settings: overrides.Overrides = dataclasses.field(default_factory=dict)
    """Sampling settings that replace the bundle's."""
    batch_size: int = 32
    """Images sampled at once."""
    out: Path | None = None
    """A PNG to save the images to, row by row in the order of the table."""
    true_renders: bool = False
    """Judge the renderer's own images at 128 px, to see how good the judge is."""


def main() -> None:
    """Sample, judge, and print the table."""
    options = overrides.parse(Options, description=__doc__)
    if options.prompts < 4 * 2:
        raise UserError(f"prompts is {options.prompts}; give at least 8, two for each group")
    if options.out is not None:
        check_png([options.out], overwrite=True)
    compilation_cache.enable()
    groups = {name: cases(*which, options.prompts // len(GROUPS)) for name, which in GROUPS.items()}
    members = [case for group in groups.values() for case in group]
    if options.true_renders:
        images = np.stack([render(case.scene, 128) for case in members])
    else:
        system = store.load(options.bundle)
        images = text_to_image(
            system,
            [case.caption for case in members],
            seed=options.seed,
            settings=overrides.override(system, options.settings),
            stop_at=options.stop_at,
            batch_size=options.batch_size,
            progress=lambda p: print(f"{p.done} of {p.total}: {p.stage} in {p.seconds:.1f} s", file=sys.stderr),
        )
    print(f"{'':42s}" + "".join(f"{name:>10s}" for name in CRITERIA))
    for name, row in evaluate(images, groups).items():
        cells = ["-" if math.isnan(row[c]) else f"{100 * row[c]:.1f} %" for c in CRITERIA]
        print(f"{name:42s}" + "".join(f"{cell:>10s}" for cell in cells))
    if options.out is not None:
        text = {"prompts": "\n".join(case.caption for case in members)}
        write_all([(options.out, functools.partial(save_png, image=grid(images, columns=8), text=text))])


if __name__ == "__main__":
    run_cli(main)
