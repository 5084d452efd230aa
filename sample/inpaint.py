"""Draw a part of an image anew, or what lies around it.

    python -m sample.inpaint photo.png --mask mask.png --prompt "a red circle" --bundle demo --out out/inpainted.png
    python -m sample.inpaint photo.png --box 0.25,0.25,0.5,0.5 --prompt "a red circle"       (the middle)
    python -m sample.inpaint photo.png --outpaint 64,0,64,0 --prompt "a red circle"          (64 px more left and right)
    python -m sample.inpaint photos/ --mask masks/ --prompt "a red circle" --out out/inpainted/    (a file each)

The prompt says what the whole picture is to show. Outside the hole every pixel stays what it is, once the image is
cropped to its central square and resized to what the bundle draws.
"""

import dataclasses
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Bool
from PIL import Image

from sample.common import (
    Decoder,
    Drawing,
    Prior,
    cuts_told,
    image_files,
    in_batches,
    last,
    read_fitted,
    stage_settings,
    stems,
)
from sample.output import Output
from unclip_jax.bundle import store
from unclip_jax.cascade import choose_settings, default_settings, stages_until
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.diffusion.samplers.repaint import Resampling
from unclip_jax.editing.inpainting import BASE, inpaint, shrink_hole, suited
from unclip_jax.editing.outpainting import Margins, outpaint
from unclip_jax.editing.points import tokenise
from unclip_jax.images.pixels import grid, to_float
from unclip_jax.images.transforms import read_image, square_crop
from unclip_jax.models.unet import UNetSpec
from unclip_jax.text_to_image import text_to_embedding


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
    """Pictures to draw of each image, each another way to fill the hole."""
    times: int = BASE.times
    """How often each stretch of the decoder's steps is gone through, so that old and new come to fit; 1 is fastest."""
    out: Path = Path("out/inpainted.png")
    """A .png for all pictures in one grid, or a folder for one file each."""
    prior: Prior = Prior()
    decoder: Decoder = Decoder()

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        files = image_files(self.images)
        return files if self.mask is None else [*files, *dict.fromkeys(mask_of(file, self.mask) for file in files)]

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        if [self.mask, self.box, self.outpaint].count(None) != 2:
            raise UserError("give one of --mask, --box and --outpaint")
        for name in ("num_images", "times"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")


def run(options: Options) -> None:
    """Draws and saves."""
    files = image_files(options.images)
    # Of each image so many pictures, one after another.
    of = np.repeat(np.arange(len(files)), options.num_images)
    names = [f"{stem}_{number:02d}" for stem in stems(files) for number in range(options.num_images)]
    output = Output("sample.inpaint", options, names)
    margins = None if options.outpaint is None else read_margins(options.outpaint)
    marked = [read_hole(options, file) for file in files] if margins is None else []
    compilation_cache.enable()
    bundle = store.load(options.bundle)
    bundle.part("prior")
    stages = stages_until(bundle, options.stop_at, "decoder")
    settings = stage_settings(bundle, options, suited(bundle, default_settings(bundle)))
    settings = choose_settings(bundle, ["prior", *stages], settings)
    size = cast(UNetSpec, bundle.parts[stages[-1]].spec).image_size
    captions = [options.prompt] * len(of)
    with cuts_told():
        z_i = text_to_embedding(
            bundle, captions, seed=options.seed, settings=settings["prior"], batch_size=options.batch_size
        )
    tokens, mask = tokenise(bundle, captions)
    (known,) = read_fitted(files, size)
    holes = np.concatenate([shrink_hole(jnp.asarray(hole)[None], size) for hole in marked]) if marked else None

    def draw(rows: np.ndarray) -> np.ndarray:
        whole = known[of[rows]]
        images = jnp.asarray(to_float(whole))
        told = jnp.asarray(z_i[rows]), tokens[rows], mask[rows], jax.random.key(options.seed)
        how = {
            "indices": jnp.asarray(rows),
            "settings": settings,
            "resampling": Resampling(jump=BASE.jump, times=options.times),
            "stop_at": options.stop_at,
        }
        done = f"{rows[-1] + 1} of {len(of)} images"
        if margins is None:
            hole = cast(np.ndarray, holes)[of[rows]]
            stages = inpaint(bundle, images, jnp.asarray(hole), *told, **how)
            drawn = last((f"{done}: {each.part}", each.value) for each in stages)
            return np.where(hole[..., None], drawn, whole)
        canvases = enumerate(outpaint(bundle, images, margins, *told, **how), 1)
        drawn = last((f"{done}: window {number}", canvas) for number, canvas in canvases)
        drawn[:, margins.top : margins.top + size, margins.left : margins.left + size] = whole
        return drawn

    images = in_batches(draw, len(of), options.batch_size, options.only)
    about = {"prompt": options.prompt, "images": "\n".join(file.name for file in files)}
    ran = {name: settings[name] for name in ("prior", *stages)}
    each = [{"prompt": options.prompt, "image": files[i].name} for i in of]
    sheet = grid(images, options.num_images if len(files) > 1 else None)
    output.save(bundle, ran, images, about, each, sheet)


def mask_of(image: Path, masks: Path) -> Path:
    """The mask for an image: `masks` itself, or the image in that folder whose name is the image's up to the suffix."""
    if not masks.is_dir():
        return masks
    found = [file for file in image_files([masks]) if file.stem == image.stem]
    if not found:
        raise UserError(f"{masks} has no mask for {image}; put one there that is named {image.stem}.png")
    return found[0]


def read_hole(options: Options, image: Path) -> Bool[np.ndarray, "side side"]:
    """Where to draw, in the central square of an image; UserError where that is nowhere."""
    picture = read_image(image)
    if options.mask is not None:
        file = mask_of(image, options.mask)
        mask = read_image(file)
        if mask.size != picture.size:
            sizes = [f"{each.width} x {each.height} px" for each in (mask, picture)]
            raise UserError(f"{file} is {sizes[0]} and {image} {sizes[1]}; give a mask of that size")
        mask = mask.convert("L")
    else:
        left, top, width, height = read_box(options.box or "", picture.size)
        mask = Image.new("L", picture.size)
        mask.paste(255, (left, top, left + width, top + height))
    hole = np.asarray(square_crop(mask)) >= 128
    if not hole.any():
        how = "white" if options.mask is not None else "the box"
        raise UserError(f"nothing of the central square of {image} is to be drawn; mark some of it ({how})")
    return hole


def read_box(text: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """left,top,width,height in pixels of an image of `size`; with a decimal point, text says fractions of it."""
    try:
        left, top, width, height = (float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"cannot read --box {text}; write four numbers, left,top,width,height") from None
    edges = np.array([left, left + width, top, top + height]) * (np.repeat(size, 2) if "." in text else 1)
    if not (np.isfinite(edges).all() and width > 0 and height > 0):
        raise UserError(f"--box {text} has no inside; write left,top,width,height, the last two above 0")
    x, x_end, y, y_end = (int(round(edge)) for edge in edges)
    if min(x, y) < 0 or x_end > size[0] or y_end > size[1]:
        raise UserError(f"--box {text} reaches beyond the image, which is {size[0]} x {size[1]} px")
    return x, y, max(x_end - x, 1), max(y_end - y, 1)


def read_margins(text: str) -> Margins:
    """left,top,right,bottom in pixels."""
    try:
        left, top, right, bottom = (int(word) for word in text.split(","))
        return Margins(left=left, top=top, right=right, bottom=bottom)
    except ValueError:
        ask = "write left,top,right,bottom in pixels, none below 0 and one above"
        raise UserError(f"cannot read --outpaint {text}; {ask}") from None


def main() -> None:
    """Reads the options and runs."""
    run(command_line.parse(Options, prog="python -m sample.inpaint", description=__doc__))


if __name__ == "__main__":
    run_cli(main)
