"""Draw what a caption says.

python -m sample.text_to_image "a red circle above a blue square" --bundle demo --num-images 4 --out out/x.png
python -m sample.text_to_image --prompts prompts.txt --out out/            (one file per image)
"""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import tyro

from unclip_jax.core.errors import run_cli
from unclip_jax.images.pixels import grid
from unclip_jax.parallel.mesh import make_mesh, parse_mesh
from unclip_jax.sampling.captions import report_truncation
from unclip_jax.sampling.overrides import parse
from unclip_jax.sampling.text_to_image import last_stage, text_to_image

from .options import Drawing, Job, chosen_settings, load, report
from .prompts import read_prompts


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

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return [] if self.prompts is None else [self.prompts]


def run(options: Options) -> None:
    """Draw and save."""
    options.check()
    prompts = read_prompts(options.prompt, options.prompts)
    options.check_count(len(prompts), options.num_images)
    captions = [prompt for prompt in prompts for _ in range(options.num_images)]
    names = ["{:04d}_{:02d}".format(*divmod(i, options.num_images)) for i in range(len(captions))]
    job = Job.start("text_to_image", options, names)
    system = load(options, weights=not options.one_stage_at_a_time)
    stages = system.path({"tokens": True, "mask": True}, last_stage(system, options.stop_at))
    settings = chosen_settings(system, options, stages)
    with report_truncation():
        images = text_to_image(
            system,
            captions,
            seed=options.seed,
            settings=settings,
            stop_at=options.stop_at,
            batch_size=options.batch_size,
            only=options.only,
            progress=report,
            mesh=make_mesh(parse_mesh(options.mesh)) if options.mesh else None,
            load_weights=functools.partial(load, options) if options.one_stage_at_a_time else None,
        )
    about = {"prompt": "\n".join(prompts), "num_images": str(options.num_images)}
    sheet = grid(images, options.num_images if len(prompts) > 1 else None)
    job.save(system, settings, images, about, [{"prompt": caption} for caption in captions], sheet)


def main() -> None:
    """Read the options and run."""
    run(parse(Options, __doc__))


if __name__ == "__main__":
    run_cli(main)
