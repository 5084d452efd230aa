"""Draw what a caption says.

python -m sample.text_to_image "a red circle above a blue square" --bundle demo --num-images 4 --out out/x.png
python -m sample.text_to_image --prompts prompts.txt --out out/            (one file per image)
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated

import tyro

from sample.common import Decoder, Drawing, Prior, cuts_told, stage_settings
from sample.output import Output
from unclip_jax.bundle import store
from unclip_jax.bundle.parts import Bundle
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.images.pixels import grid
from unclip_jax.parallel.mesh import make_mesh, parse_mesh
from unclip_jax.text_to_image import Progress, text_to_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    """Draw what a caption says, with a trained bundle."""

    prompt: Annotated[str | None, tyro.conf.Positional] = None
    """What to draw."""
    prompts: Path | None = None
    """A text file with one prompt a line, instead of a prompt."""
    num_images: int = 1
    """Images per prompt."""
    mesh: str = ""
    """Devices to draw with, "data=8": all of them for "data=-1"; fsdp and tensor split the weights. One by default.
    Each device then draws `batch_size` images at once."""
    one_stage_at_a_time: bool = False
    """Read the weights of a stage when it begins and free them when it ends, for a cascade larger than the memory."""
    prior: Prior = Prior()
    decoder: Decoder = Decoder()

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return [] if self.prompts is None else [self.prompts]


def run(options: Options) -> None:
    """Draws and saves."""
    prompts = read_prompts(options.prompt, options.prompts)
    if options.num_images < 1:
        raise UserError(f"num_images is {options.num_images}; it must be at least 1")
    captions = [prompt for prompt in prompts for _ in range(options.num_images)]
    names = ["{:04d}_{:02d}".format(*divmod(i, options.num_images)) for i in range(len(captions))]
    output = Output("sample.text_to_image", options, names)
    compilation_cache.enable()
    bundle = store.load(options.bundle, weights=not options.one_stage_at_a_time)
    settings = stage_settings(bundle, options)
    with cuts_told():
        images = text_to_image(
            bundle,
            captions,
            seed=options.seed,
            settings=settings,
            stop_at=options.stop_at,
            batch_size=options.batch_size,
            only=options.only,
            progress=report,
            mesh=make_mesh(parse_mesh(options.mesh)) if options.mesh else None,
            read_parts=functools.partial(read_parts, options.bundle) if options.one_stage_at_a_time else None,
        )
    about = {"prompt": "\n".join(prompts), "num_images": str(options.num_images)}
    sheet = grid(images, options.num_images if len(prompts) > 1 else None)
    output.save(bundle, settings, images, about, [{"prompt": caption} for caption in captions], sheet)


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


def main() -> None:
    """Reads the options and runs."""
    run(command_line.parse(Options, prog="python -m sample.text_to_image", description=__doc__))


if __name__ == "__main__":
    run_cli(main)
