"""What the commands share: options, reading images, settings of the stages, drawing in batches of one size."""

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import tyro
from jaxtyping import UInt8

from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import default_settings
from unclip_jax.core.errors import UserError
from unclip_jax.data.folder import IMAGE_SUFFIXES
from unclip_jax.diffusion.schedule import Spacing
from unclip_jax.images.pixels import to_uint8
from unclip_jax.images.transforms import fit, read_image
from unclip_jax.stages.settings import SamplerName, StageSettings
from unclip_jax.text_to_image import CutWarning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior:
    """The prior, caption to embedding. What is left out is as the bundle says."""

    steps: int | None = None
    """Network evaluations; more is slower and better."""
    sampler: SamplerName | None = None
    """How noise is taken away; dpm++ does with the fewest steps."""
    spacing: Spacing | None = None
    """Which training steps are visited."""
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
    """How noise is taken away; dpm++ does with the fewest steps."""
    spacing: Spacing | None = None
    """Which training steps are visited."""
    guidance_scale: float | None = None
    """How hard embedding and caption pull; 1 is no guidance."""
    guidance_interval: tuple[int, int] | None = None
    """Training steps, lowest and highest, between which there is guidance."""
    guidance_rescale: float | None = None
    """How far guided predictions are brought back to the contrast of unguided ones, from 0 to 1."""
    eta: float | None = None
    """Noise of DDIM, from 0 (none) to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upsamplers:
    """The upsamplers, small image to large. What is left out is as the bundle says."""

    steps: int | None = None
    """Network evaluations of each."""
    sampler: SamplerName | None = None
    """How noise is taken away; dpm++ does with the fewest steps."""
    spacing: Spacing | None = None
    """Which training steps are visited."""
    eta: float | None = None
    """Noise of DDIM, from 0 (none) to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What every command that makes pictures is told."""

    bundle: str = "demo"
    """A bundle's folder, or the name of a shipped one."""
    out: Path = Path("out/image.png")
    """A .png for all images in one sheet, or a folder for one file each."""
    overwrite: bool = False
    """Replace what is already there."""
    batch_size: int = 16
    """Images worked on at once. It changes speed and memory, not the pictures."""

    def inputs(self) -> list[Path]:
        """The files that are read, besides the bundle's."""
        return []

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing(Request):
    """What every command that draws images is told."""

    seed: int = 0
    """Another seed, other pictures; the same seed, the same."""
    stop_at: int | None = None
    """Stop at images of this many pixels instead of running the whole cascade."""
    only: int | None = None
    """Draw a single image of the request, by its number from 0; it is the same as among the others."""
    upsamplers: Upsamplers = Upsamplers()

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must be at least 0 and below 2**32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromImages(Drawing):
    """What every command that starts from images is told."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files of any size and kind, or folders of them; each is cropped to its central square."""
    points: Path | None = None
    """Instead of images, an .npz of `sample.invert`: nothing is inverted again."""
    steps: int | None = None
    """Network evaluations of the decoder; 50 where it starts from an inverted image, else as the bundle says."""
    guidance_scale: float | None = None
    """How hard the embedding pulls; 1 where it starts from an inverted image, else as the bundle says."""

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return image_files(self.images) if self.points is None else [self.points]

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        if self.images and self.points is not None:
            raise UserError("both images and --points are given; give one of them")


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The images that `paths` name: files as they stand, folders as the images in them, sorted by name."""
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(each for each in path.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES)
        inside = [each for each in inside if not each.name.startswith(".")]
        if not inside:
            raise UserError(f"{path} holds no images; give a folder of {' '.join(IMAGE_SUFFIXES)}")
        files += inside
    if not files:
        raise UserError("no image given; name one or more files, or a folder of them")
    return files


def stems(files: Sequence[Path]) -> list[str]:
    """Names for what is made of each file: its own without the suffix, with numbers before them if two are alike."""
    names = [file.stem for file in files]
    return names if len(set(names)) == len(names) else [f"{i:04d}_{name}" for i, name in enumerate(names)]


def read_fitted(files: Sequence[Path], *sizes: int) -> list[UInt8[np.ndarray, "n size size 3"]]:
    """The central squares of image files at each of `sizes`; a file is read once and let go."""
    rows = []
    for file in files:
        picture = read_image(file)
        rows.append([fit(picture, size) for size in sizes])
    return [np.stack(column) for column in zip(*rows, strict=True)]


def overlay(how: StageSettings, given: Mapping[str, Any]) -> StageSettings:
    """`how` with whatever is given, that is not None, on top."""
    return dataclasses.replace(how, **{name: value for name, value in given.items() if value is not None})


def stage_settings(
    bundle: Bundle, options: Request, settings: dict[str, StageSettings] | None = None
) -> dict[str, StageSettings]:
    """`settings`, or the bundle's, with the command's `prior`, `decoder` and `upsamplers`, if it has any, on top."""
    settings = dict(default_settings(bundle) if settings is None else settings)
    for name, how in settings.items():
        given = getattr(options, "upsamplers" if name.startswith("upsampler") else name, None)
        settings[name] = how if given is None else overlay(how, vars(given))
    return settings


def in_batches(
    call: Callable[[np.ndarray], np.ndarray], count: int, batch_size: int, only: int | None = None
) -> np.ndarray:
    """What `call` makes of the rows 0 to count - 1, `batch_size` rows at a time.

    Every batch has the same number of rows, the last one filled up with the last row, so that all run one program.
    With `only`, the batch that holds this row is run as it would be among the others, and the row returned alone: its
    roundings are those of the whole request.
    """
    size = min(batch_size, count)
    made = []
    for first in range(0, count, size):
        if only is None or first <= only < first + size:
            result = call(np.minimum(np.arange(first, first + size), count - 1))
            made.append(result[: count - first] if only is None else result[only - first : only - first + 1])
    return np.concatenate(made)


def last(stages: Iterable[tuple[str, jax.Array]]) -> UInt8[np.ndarray, "b h w 3"]:
    """The images of the last stage; the line that comes with each goes to stderr once it is done."""
    value = None
    for line, value in stages:
        jax.block_until_ready(value)
        print(line, file=sys.stderr)
    return to_uint8(cast(jax.Array, value))


@contextlib.contextmanager
def cuts_told() -> Iterator[None]:
    """Says on stderr, one line each, which captions were too long and what was cut of them."""
    with warnings.catch_warnings(record=True, action="always", category=CutWarning) as cut:
        yield
    for warning in cut:
        print(f"warning: {warning.message}", file=sys.stderr)
