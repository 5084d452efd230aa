"""What a run would see of its data: how many records, how large, what is said of them, what is left out, how fast.

    python -m train.data SOURCE [--data.min-side 256] [--clip BUNDLE] [--out out/data.png]

SOURCE and --data are those of the training commands. Besides the lines it prints, it draws a sheet of pictures with
their captions.
"""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from unclip_jax.core import command_line
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import check_writable
from unclip_jax.core.unicode import printable
from unclip_jax.data import BatchSpec, DataConfig, Record
from unclip_jax.data.records import KeyedSource
from unclip_jax.data.survey import survey
from unclip_jax.images.labels import captioned
from unclip_jax.images.png import save_png
from unclip_jax.images.transforms import resize, square_crop
from unclip_jax.training.encoders import FrozenEncoder

SIDE = 128
"""Side in px of a picture on the sheet."""
NAMED = 10
"""Records that are left out and named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a run would see of its data."""

    data: DataConfig = DataConfig(batch_size=64)
    """Where examples come from."""
    examples: int = 1000
    """Records to read, evenly spaced."""
    pictures: int = 48
    """Of them on the sheet."""
    size: int = 64
    """Side in px of the images whose batches are timed."""
    captions: bool = True
    """Whether records need a caption; --no-captions is what upsamplers do."""
    clip: str = ""
    """A run or a bundle whose tokenizer counts the captions' tokens."""
    out: Path = Path("out/data.png")
    """The sheet to draw."""
    overwrite: bool = False
    """Replace what is already there."""

    def __post_init__(self) -> None:
        for name in ("examples", "pictures", "size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")


def main() -> None:
    """Look, print, and draw."""
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv[1:2] = ["--data.source", sys.argv[1]]
    options: Options = command_line.parse(Options, description=__doc__)
    check_writable([options.out], overwrite=options.overwrite)
    tokenizer, context = None, None
    if options.clip:
        encoder = FrozenEncoder.load("clip", options.clip)
        tokenizer, context = encoder.tokenizer, encoder.encoder.network.shared_sizes().get("context")
    source = options.data.open(captions=options.captions)
    shown: list[Record] = []
    step = max(min(options.examples, len(source)) // options.pictures, 1)
    seen = 0

    def see(record: Record) -> None:
        nonlocal seen
        if seen % step == 0 and len(shown) < options.pictures:
            shown.append(record)
        seen += 1

    for line in survey(source, options.examples, tokenizer, see).lines(context):
        print(line)
    print(f"batches of {options.size} px at {_images_per_second(options, source):,.0f} images/s")
    for line in _left_out(source):
        print(line)
    pictures = [np.array(resize(square_crop(Image.fromarray(each.image)), SIDE)) for each in shown]
    save_png(options.out, captioned(pictures, [" / ".join(each.captions) for each in shown]), {})
    print(f"{options.out}: {len(shown)} pictures")


def _images_per_second(options: Options, source: KeyedSource) -> float:
    """Measure the pipeline, over as many batches as `examples` fill, after one that starts it."""
    data = options.data
    spec = BatchSpec(batch_size=data.batch_size, sizes=(options.size,), flip=data.flip, seed=data.seed)
    count = max(min(options.examples, len(source)) // data.batch_size, 1)
    with contextlib.closing(data.batches(source, None, spec, 0)) as batches:
        next(batches)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return count * data.batch_size / (time.perf_counter() - start)


def _left_out(source: KeyedSource) -> list[str]:
    """Return lines on what is bad, as far as it has been met."""
    bad = source.report()["bad"]
    assert isinstance(bad, dict)
    lines = [f"  {printable(name)}: {printable(why)}" for name, why in list(bad.items())[:NAMED]]
    more = [f"  and {len(bad) - NAMED:,} more"] if len(bad) > NAMED else []
    return [f"left out as unusable, {len(bad):,}:", *lines, *more] if bad else ["nothing met that is unusable"]


if __name__ == "__main__":
    run_cli(main)
