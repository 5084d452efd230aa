"""Draw a picture again from what its PNG text says: the same pixels, to the bit, on the same machine.

    python -m sample.again out/x.png --out out/x_again.png

The bundle and the files that it was drawn from must be where they were, seen from the folder that this is run in.
"""

import dataclasses
import math
import os
from pathlib import Path
from types import ModuleType

import tyro

from unclip_jax.bundle import store
from unclip_jax.convert.adapter_options import input_files
from unclip_jax.core import command_line
from unclip_jax.core.config import from_json
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import check_writable
from unclip_jax.core.unicode import printable
from unclip_jax.sampling.provenance import PROVENANCE_KEY, Provenance

from . import decode, inpaint, interpolate, invert, probe, text_diff, text_to_image, upscale, variations
from .options import Request, say

MAX_AGAIN = 1024
"""Images of a request that a picture alone asks for."""

# A picture's text is data: it chooses among these, and nothing else is ever imported or run for it.
COMMANDS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (text_to_image, variations, invert, interpolate, text_diff, inpaint, probe, upscale, decode)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Draw a picture again."""

    image: tyro.conf.Positional[Path]
    """A .png of one of the other commands. Out of a folder of many, it alone is drawn."""
    out: Path | None = None
    """The .png to write; beside the image, with _again in its name, by default."""
    overwrite: bool = False
    """Replace what is already there."""


def check_number(image: Path, request: Request) -> None:
    """Raise UserError where the text of a picture, which anyone may have written, asks for very many images."""
    numbers = [getattr(request, name, 1) for name in ("num_images", "frames")]
    lists = [getattr(request, name, ()) for name in ("images", "prompts", "thetas", "components")]
    count = math.prod([*numbers, *(len(each) for each in lists if isinstance(each, tuple) and each)])
    if count > MAX_AGAIN and getattr(request, "only", None) is None:
        ask = f"at most {MAX_AGAIN:,} are drawn because a picture says so; run its command yourself"
        raise UserError(f"{image} asks for {count:,} images; {ask}")


def say_what_is_read(image: Path, request: Request) -> None:
    """Name on stderr, before they are opened, the files that a picture names outside of its folder and of this one."""
    values = [getattr(request, field.name) for field in dataclasses.fields(request) if field.name != "out"]
    adapters = input_files(request.adapters, store.find(request.bundle)) if request.adapters else []
    single = [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
    paths = [each for each in single if isinstance(each, Path)] + adapters
    if request.bundle not in store.shipped():
        paths.append(Path(request.bundle))
    try:
        near = [Path(os.path.realpath(folder)) for folder in (".", image.parent)]
        far = [path for path in paths if not any(Path(os.path.realpath(path)).is_relative_to(each) for each in near)]
    except ValueError as error:
        raise UserError(f"{image} names a file that cannot be; draw it yourself") from error
    for path in far:
        say(f"reads {printable(str(path))}, which {image} names")


def run(options: Options) -> None:
    """Draw again and save."""
    out = options.out or options.image.with_name(f"{options.image.stem}_again.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"{out} is no PNG; give a name that ends in .png")
    provenance, text = Provenance.read(options.image)
    where = f"{options.image}: {PROVENANCE_KEY}"
    if provenance.command not in COMMANDS:
        known = f"no command {provenance.command!r} is known"
        raise UserError(f"{where}: {known}; draw it with the version that knows it")
    command = COMMANDS[provenance.command]
    request = from_json(command.Options, provenance.options, f"{where}.options")
    request = dataclasses.replace(request, out=out, overwrite=options.overwrite)
    request.check()
    check_number(options.image, request)
    check_writable([out], overwrite=options.overwrite)
    say_what_is_read(options.image, request)
    system = store.load(request.bundle, weights=False)
    provenance.check_same(options.image, request.files(), system, text.get("bundle_hash"))
    command.run(request)


def main() -> None:
    """Read the options and run."""
    run(command_line.parse(Options, description=__doc__))


if __name__ == "__main__":
    run_cli(main)
