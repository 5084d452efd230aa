"""Draw the way from one image, or one prompt, to another.

    python -m sample.interpolate a.png b.png --bundle demo --frames 8 --out out/way.png
    python -m sample.interpolate --prompts "a red circle" "a blue circle" "a blue square" --out out/way.gif
    python -m sample.interpolate --points out/points.npz --x-t fixed --out out/way/       (a file per frame)

Only PNG files say how they were drawn; a .gif or an .mp4 does not.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from sample.animation import SUFFIXES, check_writable, save_animation
from sample.common import FromImages, Prior, cuts_told, overlay
from sample.output import Output
from sample.points import Points, base_size, decode_points, points_of, settings_for, source_names
from unclip_jax.bundle import store
from unclip_jax.bundle.parts import Bundle
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.editing.interpolation import along, even, stops
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text_to_image import text_to_embedding

SURVEY = 4
"""Small images drawn for each frame to find an even pace."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(FromImages):
    """Draw the way from one image, or one prompt, to another."""

    prompts: tuple[str, ...] = ()
    """Two or more prompts, instead of images."""
    out: Path = Path("out/interpolation.png")
    """A .png for all frames on one sheet, a folder for a file each, a .gif or an .mp4."""
    frames: int = 8
    """Frames from one image to the next."""
    x_t: Literal["slerp", "fixed"] | None = None
    """The noise that the decoder starts from: on the way from each image's own to the next's (slerp), so that the
    images themselves are on the way; or one noise for all frames (fixed). Prompts have none of their own: fixed."""
    pace: Literal["even", "theta"] = "even"
    """Frames between which pixels change alike, for which the way is drawn small and finely first (even); or evenly
    spaced along the great circle (theta)."""
    frames_per_second: float = 8.0
    """Of a .gif or an .mp4."""
    prior: Prior = Prior()

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return [] if self.prompts else super().inputs()

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        if self.prompts and (self.images or self.points is not None):
            raise UserError("both --prompts and images are given; give one of them")
        if self.prompts and self.x_t == "slerp":
            raise UserError("prompts have no noise of their own; leave --x-t out")
        if not 1 <= self.frames <= 10_000:
            raise UserError(f"frames is {self.frames}; choose 1 to 10000")
        if not 0.01 <= self.frames_per_second <= 100:
            raise UserError(f"frames_per_second is {self.frames_per_second}; choose 0.01 to 100")


def run(options: Options) -> None:
    """Draws and saves."""
    options.check()
    names = list(options.prompts) or source_names(options)
    if len(names) < 2:
        raise UserError("one image is no way; give two or more")
    check_writable(options.out)
    places = stops(len(names), options.frames)
    frames = [f"{i:04d}" for i in range(len(places))]
    output = Output("sample.interpolate", options, frames, SUFFIXES)
    compilation_cache.enable()
    bundle = store.load(options.bundle)
    if options.prompts:
        points, settings = points_of_prompts(bundle, options)
    else:
        points, settings = points_of(bundle, options, inverted=options.x_t != "fixed")
    way = jax.jit(along)

    def draw(places: Array, options: Options) -> UInt8[np.ndarray, "n h w 3"]:
        z_i = np.asarray(way(jnp.asarray(points.z_i), places))
        x_T = None if points.x_T is None else np.asarray(way(jnp.asarray(points.x_T), places))
        # All frames have the noise of one image, that of the upsamplers too.
        return decode_points(bundle, options, settings, z_i, x_T=x_T, indices=np.zeros(len(places), np.int32))

    if options.pace == "even":
        survey = stops(len(names), SURVEY * options.frames)
        small = draw(survey, dataclasses.replace(options, stop_at=base_size(bundle), only=None))
        places = even(np.asarray(survey), small, options.frames)
    images = draw(places, options)
    if options.out.suffix.lower() in SUFFIXES:
        save_animation(options.out, images, options.frames_per_second)
        print(options.out)
        return
    about = {"prompts" if options.prompts else "images": "\n".join(names)}
    output.save(bundle, settings, images, about, [about | {"place": f"{place:.6g}"} for place in places])


def points_of_prompts(bundle: Bundle, options: Options) -> tuple[Points, dict[str, StageSettings]]:
    """What the prior draws for the prompts, and the settings of all stages."""
    prior = overlay(bundle.sampling.get("prior", StageSettings()), vars(options.prior))
    settings = settings_for(bundle, options)
    with cuts_told():
        z_i = text_to_embedding(
            bundle, options.prompts, seed=options.seed, settings=prior, batch_size=options.batch_size
        )
    return Points(names=list(options.prompts), z_i=z_i), {"prior": prior} | settings


def main() -> None:
    """Reads the options and runs."""
    run(command_line.parse(Options, prog="python -m sample.interpolate", description=__doc__))


if __name__ == "__main__":
    run_cli(main)
