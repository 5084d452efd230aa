"""Draw a part of an image anew, or what lies around it.

    python -m sample.inpaint photo.png --mask mask.png --prompt "a red circle" --bundle demo --out out/inpainted.png
    python -m sample.inpaint photo.png --box 0.25,0.25,0.5,0.5 --prompt "a red circle"       (the middle)
    python -m sample.inpaint photo.png --outpaint 64,0,64,0 --prompt "a red circle"          (64 px more left and right)
    python -m sample.inpaint photos/ --mask masks/ --prompt "a red circle" --out out/inpainted/    (a file each)

The prompt says what the whole picture is to show. Outside the mask every pixel stays what it is, once the image is
cropped to its central square and resized to what the bundle draws.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.diffusion.samplers.repaint import Resampling
from unclip_jax.editing.embeddings import tokenise
from unclip_jax.editing.inpainting import BASE, inpainting_step, resize_mask, with_inpainting_sampler
from unclip_jax.editing.outpainting import Margins, outpaint
from unclip_jax.images.files import image_files, read_fitted, stems
from unclip_jax.images.pixels import grid, to_float, to_uint8
from unclip_jax.sampling.batching import batched
from unclip_jax.sampling.captions import report_truncation
from unclip_jax.sampling.overrides import parse
from unclip_jax.sampling.session import Request, Session
from unclip_jax.sampling.text_to_image import last_stage, text_to_embedding
from unclip_jax.systems.system import Settings

from .masks import mask_of, read_margins, read_mask
from .options import Drawing, Job, chosen_settings, open_session, report, say

MAX_TIMES = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    """Draw a part of an image anew, or what lies around it."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files of any size and kind, or folders of them; each is cropped to its central square."""
    prompt: str
    """What the whole picture is to show."""
    mask: Path | None = None
    """An image of the same size, white where to draw and black where not; or a folder with one for each image, which
    is named as the image is."""
    box: str | None = None
    """Where to draw, instead of a mask: left,top,width,height in pixels of the image, or in fractions of its size where
    there is a decimal point, as in 0.25,0.25,0.5,0.5."""
    outpaint: str | None = None
    """Draw around the image instead: left,top,right,bottom, how many pixels of the size that the bundle draws."""
    num_images: int = 1
    """Pictures to draw of each image, each another way to fill the mask."""
    times: int = BASE.times
    """How often each stretch of the decoder's steps is gone through, so that old and new come to fit; 1 is fastest."""
    out: Path = Path("out/inpainted.png")
    """A .png for all pictures in one grid, or a folder for one file each."""

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        files = image_files(self.images)
        return files if self.mask is None else [*files, *dict.fromkeys(mask_of(file, self.mask) for file in files)]

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        if [self.mask, self.box, self.outpaint].count(None) != 2:
            raise UserError("give one of --mask, --box and --outpaint")
        if not 1 <= self.times <= MAX_TIMES:
            raise UserError(f"times is {self.times}; choose 1 to {MAX_TIMES}")


def run(options: Options) -> None:
    """Draw and save."""
    options.check()
    files = image_files(options.images)
    options.check_count(len(files), options.num_images)
    # Of each image so many pictures, one after another.
    of = np.repeat(np.arange(len(files)), options.num_images)
    names = [f"{stem}_{number:02d}" for stem in stems(files) for number in range(options.num_images)]
    job = Job.start("inpaint", options, names)
    margins = None if options.outpaint is None else read_margins(options.outpaint)
    masks = [] if margins is not None else [read_mask(file, options.mask, options.box) for file in files]
    session = open_session(options)
    system, until = session.system, last_stage(session.system, options.stop_at)
    stages = system.path({"tokens": True, "mask": True}, until)
    base = with_inpainting_sampler(system, system.settings([]))
    settings = chosen_settings(system, options, stages, base)
    size = system.stage(stages[-1]).network.sample_shape[0]
    captions = [options.prompt] * len(of)
    prior, sizes = settings[system.writer("z_i")], {"seed": options.seed, "batch_size": options.batch_size}
    with report_truncation():
        inputs = {"z_i": text_to_embedding(system, captions, settings=prior, **sizes), **tokenise(system, captions)}
    whole = read_fitted(files, size)[0][of]
    again = Resampling(jump=BASE.jump, times=options.times)
    if margins is None:
        mask = np.concatenate([resize_mask(jnp.asarray(each)[None], size) for each in masks])[of]
        known = jnp.asarray(to_float(whole))
        step = inpainting_step(system, known, jnp.asarray(mask), inputs, resampling=again, until=until)
        request = Request(inputs=inputs, seed=options.seed, until=until, settings=settings, only=options.only)
        drawn = to_uint8(session.result(request, report, step))
        chosen = slice(None) if options.only is None else slice(options.only, options.only + 1)
        images = np.where(mask[chosen, ..., None], drawn, whole[chosen])
    else:
        images = draw_around(session, options, margins, whole, inputs, settings, again)
    about = {"prompt": options.prompt, "images": "\n".join(file.name for file in files)}
    each = [{"prompt": options.prompt, "image": files[i].name} for i in of]
    sheet = grid(images, options.num_images if len(files) > 1 else None)
    job.save(system, settings, images, about, each, sheet)


def draw_around(
    session: Session,
    options: Options,
    margins: Margins,
    whole: np.ndarray,
    inputs: dict[str, np.ndarray],
    settings: Settings,
    resampling: Resampling,
) -> np.ndarray:
    """Images [n H W 3] with what lies around them."""
    count, size = whole.shape[:2]

    def draw(rows: np.ndarray) -> np.ndarray:
        canvas = None
        canvases = outpaint(
            session.system,
            jnp.asarray(to_float(whole[rows])),
            margins,
            {name: jnp.asarray(array[rows]) for name, array in inputs.items()},
            jax.random.key(options.seed),
            indices=jnp.asarray(rows),
            settings=settings,
            resampling=resampling,
            until=last_stage(session.system, options.stop_at),
        )
        for number, canvas in enumerate(canvases, 1):
            jax.block_until_ready(canvas)
            say(f"{rows[-1] + 1} of {count} images: window {number}")
        assert canvas is not None, "there is a window at least"
        drawn = to_uint8(canvas)
        drawn[:, margins.top : margins.top + size, margins.left : margins.left + size] = whole[rows]
        return drawn

    return batched(draw, count, options.batch_size, options.only)


def main() -> None:
    """Read the options and run."""
    run(parse(Options, __doc__))


if __name__ == "__main__":
    run_cli(main)
