"""Draw a picture again from what its PNG text says: the same pixels, to the bit, on the same machine.

    python -m sample.again out/x.png --out out/x_again.png

The bundle and the files that it was drawn from must be where they were, seen from the folder that this is run in.
"""

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import tyro

from sample import decode, inpaint, interpolate, invert, probe, text_diff, text_to_image, upscale, variations
from sample.common import Request
from sample.output import AGAIN, Recipe, check_free, hashes
from unclip_jax.bundle import store
from unclip_jax.core import command_line
from unclip_jax.core.config import from_json
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.images.png import read_text

# A picture's text is data: it chooses among these, and nothing else is ever imported or run for it.
COMMANDS: dict[str, ModuleType] = {
    module.__name__: module
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


def run(options: Options) -> None:
    """Draws again and saves."""
    out = options.out or options.image.with_name(f"{options.image.stem}_again.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"{out} is no PNG; give a name that ends in .png")
    text = read_text(options.image)
    if AGAIN not in text:
        raise UserError(f"{options.image} does not say how it was drawn; give a .png of one of the sample commands")
    where = f"{options.image}: {AGAIN}"
    try:
        recipe = from_json(Recipe, json.loads(text[AGAIN]), where)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}); give a .png as it was written") from error
    if recipe.module not in COMMANDS:
        raise UserError(f"{where}: no command {recipe.module!r} is known; draw it with the version that knows it")
    command = COMMANDS[recipe.module]
    request = from_json(command.Options, recipe.options, f"{where}.options")
    request = dataclasses.replace(request, out=out, overwrite=options.overwrite)
    check_free([out], overwrite=options.overwrite)
    check_same(options.image, request, recipe.inputs, text.get("bundle_hash"))
    command.run(request)


def check_same(image: Path, request: Request, inputs: dict[str, str], bundle_hash: str | None) -> None:
    """Raises UserError, naming what changed, unless bundle and inputs are those that the picture was drawn from."""
    found = hashes(request.inputs())
    changed = sorted(name for name in found.keys() | inputs.keys() if found.get(name) != inputs.get(name))
    if changed:
        raise UserError(f"{changed[0]} is not as it was when {image} was drawn; put that file back")
    bundle = store.load(request.bundle, weights=False)
    if bundle.hash != bundle_hash:
        raise UserError(f"bundle {request.bundle} is not the one that {image} was drawn with; put that one back")


def main() -> None:
    """Reads the options and runs."""
    run(command_line.parse(Options, prog="python -m sample.again", description=__doc__))


if __name__ == "__main__":
    run_cli(main)
