"""Draw what a caption says.

    python -m sample.text_to_image "a red circle above a blue square" --bundle demo --num-images 4 --out out/x.png
    python -m sample.text_to_image --prompts prompts.txt --out out/            (one file per image)
"""

import dataclasses
import functools
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from unclip_jax import command_line, compilation_cache
from unclip_jax.bundle import store
from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import default_settings
from unclip_jax.config import to_json
from unclip_jax.diffusion.schedule import Spacing
from unclip_jax.errors import UserError, run_cli
from unclip_jax.images import grid, save_png
from unclip_jax.parallel.mesh import make_mesh, parse_mesh
from unclip_jax.settings import SamplerName, StageSettings
from unclip_jax.text_to_image import CutWarning, Progress, text_to_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior:
    """The prior, caption to embedding. What is left out is as the bundle says."""

    steps: int | None = None
    """Network evaluations; more is slower and better."""
    sampler: SamplerName | None = None
    """How noise is taken away."""
    spacing: Spacing | None = None
    """Which training steps are visited: evenly from end to end (linspace), or otherwise."""
    guidance_scale: float | None = None
    """How hard the caption pulls; 1 is no guidance."""
    guidance_interval: tuple[int, int] | None = None
    """Training steps, lowest and highest, between which there is guidance."""
    num_candidates: int | None = None
    """Embeddings to draw per image, of which the one nearest to the caption is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """The decoder, embedding to small image. What is left out is as the bundle says."""

    steps: int | None = None
    """Network evaluations; more is slower and better."""
    sampler: SamplerName | None = None
    """How noise is taken away."""
    spacing: Spacing | None = None
    """Which training steps are visited: evenly from end to end (linspace), or otherwise."""
    guidance_scale: float | None = None
    """How hard embedding and caption pull; 1 is no guidance."""
    guidance_interval: tuple[int, int] | None = None
    """Training steps, lowest and highest, between which there is guidance."""
    eta: float | None = None
    """Noise of DDIM, from 0 (none) to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upsamplers:
    """The upsamplers, small image to large. What is left out is as the bundle says."""

    steps: int | None = None
    """Network evaluations of each."""
    sampler: SamplerName | None = None
    """How noise is taken away."""
    spacing: Spacing | None = None
    """Which training steps are visited: evenly from end to end (linspace), or otherwise."""
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
    """Images drawn at once, by each device. It changes speed and memory, not the pictures."""
    mesh: str = ""
    """Devices to draw with, "data=8": all of them for "data=-1"; fsdp and tensor split the weights. One by default."""
    one_stage_at_a_time: bool = False
    """Read the weights of a stage when it begins and free them when it ends, for a cascade larger than the memory."""
    prior: Prior = Prior()
    decoder: Decoder = Decoder()
    upsamplers: Upsamplers = Upsamplers()


def main() -> None:
    """Reads the options, draws, saves."""
    options: Options = command_line.parse(Options, prog="python -m sample.text_to_image", description=__doc__)
    compilation_cache.enable()
    prompts = read_prompts(options.prompt, options.prompts)
    if options.num_images < 1:
        raise UserError(f"num_images is {options.num_images}; it must be at least 1")
    if options.out.suffix.lower() not in ("", ".png"):
        raise UserError(f"{options.out} is no PNG; give a name that ends in .png, or a folder")
    bundle = store.load(options.bundle, weights=not options.one_stage_at_a_time)
    settings = choose_settings(bundle, options)
    with warnings.catch_warnings(record=True, action="always", category=CutWarning) as cut:
        images = text_to_image(
            bundle,
            [prompt for prompt in prompts for _ in range(options.num_images)],
            seed=options.seed,
            settings=settings,
            stop_at=options.stop_at,
            batch_size=options.batch_size,
            progress=report,
            mesh=make_mesh(parse_mesh(options.mesh)) if options.mesh else None,
            read_parts=functools.partial(read_parts, options.bundle) if options.one_stage_at_a_time else None,
        )
    for warning in cut:
        print(f"warning: {warning.message}", file=sys.stderr)
    save(bundle, prompts, images, settings, options)


def read_parts(bundle: str, parts: tuple[str, ...]) -> Bundle:
    """The weights of one stage."""
    return store.load(bundle, parts=parts)


def report(progress: Progress) -> None:
    """One line per stage on stderr."""
    of = f"{progress.done} of {progress.total} images"
    stage = f"{progress.part} ({progress.stage} of {progress.num_stages})"
    print(f"{of}: {stage} in {progress.seconds:.1f} s", file=sys.stderr)


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt, or the non-empty lines of the file, or one empty prompt."""
    if (prompt is None) == (file is None):
        raise UserError('give a prompt, as in "a red circle", or a file of them with --prompts')
    if file is None:
        lines = [prompt or ""]
    else:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}: {error}; give a UTF-8 text file") from error
    return [line.strip() for line in lines if line.strip()] or [""]


def choose_settings(bundle: Bundle, options: Options) -> dict[str, StageSettings]:
    """The bundle's settings with the command line's on top."""
    settings = default_settings(bundle)
    for name in settings:
        given = getattr(options, "upsamplers" if name.startswith("upsampler") else name)
        settings[name] = dataclasses.replace(
            settings[name], **{key: value for key, value in vars(given).items() if value is not None}
        )
    return settings


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
    for i, image in enumerate(images):
        prompt, number = divmod(i, options.num_images)
        path = options.out / f"{prompt:04d}_{number:02d}.png"
        save_png(path, image, about | {"prompt": prompts[prompt], "index": str(i)})
        print(path)


if __name__ == "__main__":
    run_cli(main)
