"""Draw the path from one image, or one prompt, to another.

    python -m sample.interpolate a.png b.png --bundle demo --frames 8 --out out/path.png
    python -m sample.interpolate --prompts "a red circle" "a blue circle" "a blue square" --out out/path.gif
    python -m sample.interpolate --latents out/latents.npz --x-t fixed --out out/path/       (a file per frame)

Only PNG files say how they were drawn; a .gif or an .mp4 does not.
"""

import dataclasses
import functools
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import write_all
from unclip_jax.editing.interpolation import OVERSAMPLING, equal_change_positions, frame_positions, interpolate
from unclip_jax.editing.latents import Latents, base_size
from unclip_jax.images.animation import SUFFIXES, check_writable, save_animation
from unclip_jax.sampling.captions import report_truncation
from unclip_jax.sampling.overrides import parse
from unclip_jax.sampling.session import Session
from unclip_jax.sampling.text_to_image import last_stage, text_to_embedding

from .options import FromImages, Job, chosen_settings, decode, latents_of, open_session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(FromImages):
    """Draw the path from one image, or one prompt, to another."""

    RENAMED: ClassVar = {**FromImages.RENAMED, "pace": "spacing"}

    prompts: tuple[str, ...] = ()
    """Two or more prompts, instead of images."""
    out: Path = Path("out/interpolation.png")
    """A .png for all frames on one sheet, a folder for a file each, a .gif or an .mp4."""
    frames: int = 8
    """Frames from one image to the next."""
    x_t: Literal["slerp", "fixed"] | None = None
    """The noise that the decoder starts from: between each image's own and the next's (slerp), so that the images
    themselves are on the path; or one noise for all frames (fixed). Prompts have none of their own: fixed."""
    spacing: Literal["even", "theta"] = "even"
    """Frames between which pixels change alike, for which the path is drawn small and finely first (even); or evenly
    spaced along the great circle (theta)."""
    frames_per_second: float = 8.0
    """Of a .gif or an .mp4."""

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return [] if self.prompts else super().inputs()

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        if self.prompts and (self.images or self.latents is not None):
            raise UserError("both --prompts and images are given; give one of them")
        if self.prompts and self.x_t == "slerp":
            raise UserError("prompts have no noise of their own; leave --x-t out")
        if not 1 <= self.frames <= 10_000:
            raise UserError(f"frames is {self.frames}; choose 1 to 10000")
        if not 0.01 <= self.frames_per_second <= 100:
            raise UserError(f"frames_per_second is {self.frames_per_second}; choose 0.01 to 100")


def run(options: Options) -> None:
    """Draw and save."""
    options.check()
    names = list(options.prompts) or options.names()
    if len(names) < 2:
        raise UserError("one image is no path; give two or more")
    check_writable(options.out)
    positions = frame_positions(len(names), options.frames)
    job = Job.start("interpolate", options, [f"{i:04d}" for i in range(len(positions))], SUFFIXES)
    session = open_session(options)
    if options.prompts:
        latents, settings = latents_of_prompts(session, options)
        decoded = functools.partial(decode, session, options, settings)
    else:
        latents, settings, start = latents_of(session.system, options, inverted=options.x_t != "fixed")
        decoded = functools.partial(start, session)
    path = jax.jit(interpolate)

    def draw(positions, **more) -> np.ndarray:
        z_i = np.asarray(path(jnp.asarray(latents.z_i), positions))
        x_T = None if latents.x_T is None else np.asarray(path(jnp.asarray(latents.x_T), positions))
        # All frames have the noise of one image, that of the upsamplers too.
        return decoded(z_i, x_T=x_T, indices=np.zeros(len(positions), np.int32), **more)

    if options.spacing == "even":
        survey = frame_positions(len(names), OVERSAMPLING * options.frames)
        small = draw(survey, stop_at=base_size(session.system))
        positions = equal_change_positions(np.asarray(survey), small, options.frames)
    images = draw(positions, only=options.only)
    if options.out.suffix.lower() in SUFFIXES:
        save = functools.partial(save_animation, frames=images, frames_per_second=options.frames_per_second)
        print(*write_all([(options.out, save)]))
        return
    about = {"prompts" if options.prompts else "images": "\n".join(names)}
    each = [about | {"place": f"{position:.6g}"} for position in positions]
    job.save(session.system, settings, images, about, each)


def latents_of_prompts(session: Session, options: Options):
    """What the prior samples for the prompts, and the settings of all stages."""
    system = session.system
    prior = system.writer("z_i")
    stages = system.path({"tokens": True, "mask": True}, last_stage(system, options.stop_at))
    settings = chosen_settings(system, options, stages)
    sizes = {"seed": options.seed, "batch_size": options.batch_size}
    with report_truncation():
        z_i = text_to_embedding(system, options.prompts, settings=settings[prior], **sizes)
    return Latents(names=list(options.prompts), z_i=z_i), settings


def main() -> None:
    """Read the options and run."""
    run(parse(Options, __doc__))


if __name__ == "__main__":
    run_cli(main)
