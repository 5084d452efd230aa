"""How many images a second one core prepares: reading, decoding, cropping, resizing, tokenising.

    python -m benchmarks.input [--side 512] [--images 256] [--seconds 5]

The images are photographs' worth of JPEG, made here: smooth shapes under noise, so that they compress as photographs
do. Rates are per second of processor time, so other work on the machine does not count.
"""

import dataclasses
import io
import platform
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from unclip_jax.bundle import store
from unclip_jax.core import command_line
from unclip_jax.core.errors import run_cli
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.sources import open_source

BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the input of every stage of the paper."""

    side: int = 512
    """Pixels of the stored images' shorter side; upsamplers to 1024 px read images of twice as many."""
    images: int = 256
    """Different images to read."""
    seconds: float = 5.0
    """Processor time to measure each stage for."""


def photograph(rng: np.random.Generator, side: int) -> bytes:
    """A JPEG of side x 4/3 side pixels, quality 90, about as large as a photograph's."""
    coarse = rng.integers(0, 256, (side // 64, side // 48, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC), np.float32)
    noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_folder(folder: Path, options: Options, side: int) -> float:
    """Images with captions; returns their mean size in bytes."""
    rng, sizes = np.random.default_rng(0), []
    folder.mkdir()
    for i in range(options.images):
        data = photograph(rng, side)
        (folder / f"{i:05d}.jpg").write_bytes(data)
        (folder / f"{i:05d}.txt").write_text("a photograph of something that takes a dozen words to describe, or so\n")
        sizes.append(len(data))
    return float(np.mean(sizes))


def rate(folder: Path, spec: BatchSpec, seconds: float) -> float:
    """Images per second of processor time."""
    tokenizer = store.load("demo", weights=False).tokenizer
    source = open_source(folder, "train", folder)
    with closing(batches(source, tokenizer, spec, num_threads=1)) as iterator:
        next(iterator)
        start, count = time.process_time(), 0
        while time.process_time() - start < seconds:
            count += len(next(iter(next(iterator).values())))
        return count / (time.process_time() - start)


def main() -> None:
    """Print a table, one row a stage."""
    options: Options = command_line.parse(Options, prog="python -m benchmarks.input", description=__doc__)
    stages = {
        "clip, prior (256 px)": (options.side, BatchSpec(batch_size=BATCH, sizes=(256,), context=256)),
        "decoder (64 and 256 px)": (options.side, BatchSpec(batch_size=BATCH, sizes=(64, 256), context=256)),
        "upsampler to 256 px": (options.side, BatchSpec(batch_size=BATCH, sizes=(256,), crop=64)),
        "upsampler to 1024 px": (2 * options.side, BatchSpec(batch_size=BATCH, sizes=(1024,), crop=256)),
    }
    print(f"{platform.processor() or platform.machine()}, {options.images} JPEGs\n")
    print("| stage | stored side | bytes | images/s of one core |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {}
        for name, (side, spec) in stages.items():
            folder = Path(scratch) / str(side)
            if side not in sizes:
                sizes[side] = write_folder(folder, options, side)
            print(f"| {name} | {side} px | {sizes[side] / 1e3:.0f} kB | {rate(folder, spec, options.seconds):.0f} |")


if __name__ == "__main__":
    run_cli(main)
