"""Draw what a caption says.

    python -m sample.text_to_image "a red circle above a blue square" --bundle demo --num-images 4 --out out/x.png
    python -m sample.text_to_image --prompts prompts.txt --out out/            (one file per image)
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from unclip_jax import compilation_cache
from unclip_jax.bundle import store
from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import StageSettings, cascade, default_settings, stages_until
from unclip_jax.config import to_json
from unclip_jax.errors import UserError, run_cli
from unclip_jax.images import grid, save_png, to_uint8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior:
    """The prior, caption to embedding. What is left out is as the bundle says."""

    steps: int | None = None
    """Network evaluations; more is slower and better."""
    guidance_scale: float | None = None
    """How hard the caption pulls; 1 is no guidance."""
    num_candidates: int | None = None
    """Embeddings to draw per image, of which the one nearest to the caption is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """The decoder, embedding to small image. What is left out is as the bundle says."""

    steps: int | None = None
    """Network evaluations; more is slower and better."""
    guidance_scale: float | None = None
    """How hard embedding and caption pull; 1 is no guidance."""
    eta: float | None = None
    """Noise of DDIM, from 0 (none) to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upsamplers:
    """The upsamplers, small image to large. What is left out is as the bundle says."""

    steps: int | None = None
    """Network evaluations of each."""
    eta: float | None = None
    """Noise of DDIM, from 0 (none) to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Draw what a caption says, with a trained bundle."""

    prompt: Annotated[str | None, tyro.conf.Positional] = None
    """What to draw."""
    prompts: Path | None = None
    """A text file with one prompt a line, instead of a prompt."""
    bundle: str = "demo"
    """A bundle's folder, or the name of a shipped one."""
    num_images: int = 1
    """Images per prompt."""
    seed: int = 0
    """Another seed, another picture; the same seed, the same."""
    out: Path = Path("out/image.png")
    """A .png for all images in one grid, or a folder for one file each."""
    stop_at: int | None = None
    """Stop at images of this many pixels instead of running the whole cascade."""
    batch_size: int = 16
    """Images drawn at once. It changes speed and memory, not the pictures."""
    prior: Prior = Prior()
    decoder: Decoder = Decoder()
    upsamplers: Upsamplers = Upsamplers()


def main() -> None:
    """Reads the options, draws, saves."""
    options = tyro.cli(Options, prog="python -m sample.text_to_image", description=__doc__)
    compilation_cache.enable()
    prompts = read_prompts(options)
    for name in ("num_images", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}; it must be at least 1")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"seed is {options.seed}; it must be at least 0 and below 2**32")
    bundle = store.load(options.bundle)
    settings = choose_settings(bundle, options)
    images = draw(bundle, [p for p in prompts for _ in range(options.num_images)], settings, options)
    save(bundle, prompts, images, settings, options)


def read_prompts(options: Options) -> list[str]:
    """The prompt, or the non-empty lines of the file."""
    if (options.prompt is None) == (options.prompts is None):
        raise UserError('give a prompt, as in "a red circle", or a file of them with --prompts')
    if options.prompts is None:
        lines = [options.prompt or ""]
    else:
        try:
            lines = options.prompts.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {options.prompts}: {error}; give a UTF-8 text file") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError("the prompt is empty; say what to draw")
    return prompts


def choose_settings(bundle: Bundle, options: Options) -> dict[str, StageSettings]:
    """The bundle's settings with the command line's on top."""
    settings = default_settings(bundle)
    for name in settings:
        given = getattr(options, "upsamplers" if name.startswith("upsampler") else name)
        settings[name] = dataclasses.replace(
            settings[name], **{key: value for key, value in vars(given).items() if value is not None}
        )
    return settings


def draw(
    bundle: Bundle, prompts: list[str], settings: dict[str, StageSettings], options: Options
) -> np.ndarray:
    """uint8 [n h w 3], one image per prompt, in batches of one size so that every batch runs the same programs."""
    names = stages_until(bundle, options.stop_at)
    if bundle.tokenizer is None:
        raise UserError(f"bundle {bundle.name} has no tokenizer; use one that reads captions")
    encoded = bundle.tokenizer.encode(prompts, bundle.part("clip").spec.text.context)
    for prompt, cut in dict(zip(prompts, encoded.cut, strict=True)).items():
        if cut is not None:
            print(f"warning: the prompt is too long, this part of it was cut: {cut!r} (of {prompt!r})", file=sys.stderr)
    size = min(options.batch_size, len(prompts))
    rows = np.arange(-(-len(prompts) // size) * size)
    images = []
    for batch in np.split(rows, len(rows) // size):
        some = np.minimum(batch, len(prompts) - 1)
        stages = cascade(
            bundle,
            encoded.tokens[some],
            encoded.mask[some],
            jax.random.key(options.seed),
            indices=jax.numpy.asarray(batch),
            settings=settings,
            stop_at=options.stop_at,
        )
        start = time.perf_counter()
        for i, drawn in enumerate(stages):
            jax.block_until_ready(drawn.value)
            seconds, start = time.perf_counter() - start, time.perf_counter()
            done = f"images {batch[0] + 1} to {min(batch[-1] + 1, len(prompts))} of {len(prompts)}"
            print(f"{done}: {drawn.part} ({i + 1}/{len(names)}) in {seconds:.1f} s", file=sys.stderr)
            if i + 1 == len(names):
                images.append(to_uint8(drawn.value))
    return np.concatenate(images)[: len(prompts)]


def save(
    bundle: Bundle, prompts: list[str], images: np.ndarray, settings: dict[str, StageSettings], options: Options
) -> None:
    """One grid, or one file per image; each carries what it takes to draw it again."""
    about = {
        "software": "unclip_jax",
        "bundle": bundle.name,
        "bundle_hash": bundle.hash,
        "seed": str(options.seed),
        "stop_at": str(options.stop_at),
        "settings": json.dumps({name: to_json(how) for name, how in settings.items()}),
    }
    if options.out.suffix.lower() == ".png":
        text = about | {"prompt": "\n".join(prompts), "num_images": str(options.num_images)}
        columns = options.num_images if len(prompts) > 1 else None
        save_png(options.out, grid(images, columns), text)
        print(options.out)
        return
    if options.out.suffix:
        raise UserError(f"{options.out} is no PNG; give a name that ends in .png, or a folder")
    for i, image in enumerate(images):
        prompt, number = divmod(i, options.num_images)
        path = options.out / f"{prompt:04d}_{number:02d}.png"
        save_png(path, image, about | {"prompt": prompts[prompt], "index": str(i)})
        print(path)


if __name__ == "__main__":
    run_cli(main)
