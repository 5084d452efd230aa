"""What the commands share: their options, and the way from these to pictures."""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

import numpy as np
import tyro
from jaxtyping import UInt8

from unclip_jax.bundle import store
from unclip_jax.convert.adapter_options import adapted, input_files
from unclip_jax.core import compilation_cache
from unclip_jax.core.errors import UserError
from unclip_jax.core.npz import read_npz
from unclip_jax.editing.inversion import inversion_settings
from unclip_jax.editing.latents import Latents, decoding_request, encode_files, load_latents
from unclip_jax.images.files import image_files, read_fitted, stems
from unclip_jax.images.pixels import grid, to_uint8
from unclip_jax.sampling import overrides
from unclip_jax.sampling.outputs import Output
from unclip_jax.sampling.provenance import Provenance
from unclip_jax.sampling.session import Progress, Session
from unclip_jax.sampling.text_to_image import last_stage
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems.system import System

Settings = dict[str, SamplingSettings]
MAX_BATCH, MAX_IMAGES = 4096, 100_000
"""Of a request: images at once, and in all."""
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What every command asks."""

    bundle: str = "demo"
    """A bundle's folder, or the name of a shipped one."""
    out: Path = Path("out/image.png")
    """A .png for all images in one sheet, or a folder for one file each."""
    overwrite: bool = False
    """Replace what is already there."""
    batch_size: int = 16
    """Images worked on at once. It changes speed and memory, not the pictures."""
    adapters: tuple[str, ...] = ()
    """Adapters (LoRA) to merge into the bundle's weights, each [PART=]FILE[:STRENGTH], or the name of one that the
    bundle carries."""
    settings: Annotated[overrides.Overrides, tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    """How stages are sampled, where it is not as the bundle says."""

    def inputs(self) -> list[Path]:
        """The files that are read, besides the bundle's."""
        return []

    def files(self) -> list[Path]:
        """The files that are read, those of adapters among them."""
        return (
            [*self.inputs(), *input_files(self.adapters, store.find(self.bundle))] if self.adapters else self.inputs()
        )

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.batch_size > MAX_BATCH:
            raise UserError(f"batch_size is {self.batch_size}; it must be at most {MAX_BATCH}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing(Request):
    """What every command that samples images asks."""

    seed: int = 0
    """Another seed, other pictures; the same seed, the same."""
    stop_at: int | None = None
    """Stop at images of this many pixels instead of running the whole cascade."""
    only: int | None = None
    """Sample a single image of the request, by its number from 0; it is the same as among the others."""

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must be at least 0 and below 2**32")
        number = getattr(self, "num_images", 1)
        if number < 1:
            raise UserError(f"num_images is {number}; it must be at least 1")
        self.check_count(number)

    def check_count(self, *factors: int) -> None:
        """Raise UserError for more images than a request may have: before any list of them is made."""
        if math.prod(factors) > MAX_IMAGES:
            raise UserError(f"this asks for {math.prod(factors):,} images; ask for at most {MAX_IMAGES:,} at once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromImages(Drawing):
    """What every command that starts from images asks."""

    RENAMED: ClassVar = {"points": "latents"}

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files of any size and kind, or folders of them; each is cropped to its central square."""
    latents: Path | None = None
    """Instead of images, an .npz of `sample.invert`: nothing is inverted again."""

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return image_files(self.images) if self.latents is None else [self.latents]

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        if self.images and self.latents is not None:
            raise UserError("both images and --latents are given; give one of them")

    def names(self) -> list[str]:
        """What the images are called, one name each, as names of files may be.

        Raises UserError where the command makes no sense, or there are none.
        """
        self.check()
        if self.latents is None:
            return stems(image_files(self.images))
        names = read_npz(self.latents, {}, ("names",))[1]["names"]
        # The file may come from anywhere: no name may lead to another folder.
        return stems([Path(f"{name}.npz" if name.isprintable() else "image.npz") for name in names])


@dataclasses.dataclass(frozen=True)
class Job:
    """A request about to run: made before any work, so that whatever is wrong with it is said at once."""

    options: Drawing
    output: Output
    provenance: Provenance

    @classmethod
    def start(cls, command: str, options: Drawing, names: Sequence[str], suffixes: Sequence[str] = ()) -> "Job":
        """Check the request and what it writes; `names` are of the images' files in a folder."""
        options.check()
        output = Output(options.out, names, options.only, options.overwrite, suffixes)
        provenance = Provenance.of(command, options, options.files())
        compilation_cache.enable()
        return cls(options, output, provenance)

    def save(
        self,
        system: System,
        settings: Settings,
        images: UInt8[np.ndarray, "n h w 3"],
        about: dict[str, str],
        about_each: Sequence[dict[str, str]],
        sheet: UInt8[np.ndarray, "grid_h grid_w 3"] | None = None,
    ) -> None:
        """Write the PNG files and say on stdout which; arguments as of `Output.save`."""
        for path in self.output.save(self.provenance, system, settings, images, about, about_each, sheet):
            print(path)


def load(options: Request, parts: Sequence[str] | None = None, *, weights: bool = True) -> System:
    """The bundle, or the weights of some of its parts, or none; with the adapters merged into them."""
    system = store.load(options.bundle, parts=parts, weights=weights)
    return adapted(system, options.adapters, store.find(options.bundle))


def open_session(options: Request, parts: Sequence[str] | None = None) -> Session:
    """The bundle, or some of its parts, ready to sample."""
    return Session(load(options, parts), batch_size=options.batch_size)


def report(progress: Progress) -> None:
    """One line per stage on stderr."""
    of = f"{progress.done} of {progress.total} images"
    stage = f"{progress.stage} ({progress.number} of {progress.num_stages})"
    say(f"{of}: {stage} in {progress.seconds:.1f} s")


def say(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr)


def chosen_settings(system: System, options: Request, names: Sequence[str], base: Settings | None = None) -> Settings:
    """Settings of the stages `names`: `base`, the bundle's own where it names none, with the command's on top."""
    settings = system.settings(list(names), overrides.override(system, options.settings, base))
    return {name: settings[name] for name in names}


def latents_of(
    system: System, options: FromImages, *, inverted: bool
) -> tuple[Latents, Settings, Callable[..., UInt8[np.ndarray, "n h w 3"]]]:
    """The latents that a command is given, of its images or from its file, the settings that decode them, and a
    function that does: (session, z_i, x_T=, captions=, indices=, stop_at=) -> images.

    Args:
        inverted: whether x_T is wanted.
    """
    stages = system.path({"z_i": True, "tokens": True, "mask": True}, last_stage(system, options.stop_at))
    decoder = system.reader("z_i")
    known = load_latents(options.latents, system) if options.latents is not None else None
    own = None if not inverted else known.settings if known is not None else inversion_settings()
    settings = chosen_settings(system, options, stages, {} if own is None else {decoder: own})
    if known is None:
        chosen = settings[decoder] if inverted else None
        files = image_files(options.images)
        known = encode_files(system, files, batch_size=options.batch_size, settings=chosen, report=say)
    elif not inverted:
        known = dataclasses.replace(known, x_T=None)
    return known, settings, lambda session, z_i, **more: decode(session, options, settings, z_i, **more)


def decode(
    session: Session,
    options: Drawing,
    settings: Settings,
    z_i: np.ndarray,
    *,
    x_T: np.ndarray | None = None,
    captions: Sequence[str] | None = None,
    indices: np.ndarray | None = None,
    stop_at: int | None = None,
    only: int | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Images of embeddings; `stop_at` instead of the command's, and all images unless `only` names one."""
    request = decoding_request(
        session.system,
        z_i,
        seed=options.seed,
        x_T=x_T,
        captions=captions,
        indices=indices,
        settings=settings,
        until=last_stage(session.system, stop_at or options.stop_at),
        only=only,
    )
    return to_uint8(session.result(request, report))


def with_originals(
    options: FromImages, images: UInt8[np.ndarray, "n h w 3"], columns: int
) -> UInt8[np.ndarray, "grid_h grid_w 3"] | None:
    """A sheet with a row of so many columns for each image, the image itself first where it is a file.

    None for a request of a single image.
    """
    if options.only is not None:
        return None
    if options.latents is not None:
        return grid(images, columns)
    side = images.shape[1]
    originals = read_fitted(image_files(options.images), side)[0]
    rows = images.reshape(-1, columns, side, side, 3)
    return grid(np.concatenate([originals[:, None], rows], axis=1).reshape(-1, side, side, 3), 1 + columns)
