"""Draw what embeddings say: the cascade from z_i on.

    python -m sample.embed "a red circle" --bundle demo --out out/z.npz
    python -m sample.decode --embeddings out/z.npz --bundle demo --out out/decoded.png

Takes the files of `sample.embed`, `sample.encode` and `sample.invert`: `z_i` [n d]; the captions `prompts` [n] and the
noise `x_T` [n h w 3], to start from, where the file has them.
"""

import dataclasses
from pathlib import Path
from typing import cast

from sample.common import Decoder, Drawing, overlay, stage_settings
from sample.output import Output
from sample.points import base_size, check_bundle, decode_points, read_how, read_npz
from unclip_jax.bundle import store
from unclip_jax.cascade import choose_settings, stages_until
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.models.clip import CLIPSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    """Draw what embeddings say."""

    embeddings: Path
    """An .npz with z_i; one image is drawn of each."""
    captioned: bool = True
    """Tell the decoder the captions too, where the file has some."""
    decoder: Decoder = Decoder()
    out: Path = Path("out/decoded.png")
    """A .png for all images in one grid, or a folder for one file each."""

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return [self.embeddings]


def run(options: Options) -> None:
    """Draws and saves."""
    count = len(read_npz(options.embeddings, {"z_i": ("n", "d")})[0]["z_i"])
    output = Output("sample.decode", options, [f"{i:04d}" for i in range(count)])
    compilation_cache.enable()
    bundle = store.load(options.bundle)
    stages = stages_until(bundle, options.stop_at, "decoder")
    width, size = cast(CLIPSpec, bundle.part("clip").spec).embed_dim, base_size(bundle)
    shapes = {"z_i": ("n", width), "x_T": ("n", size, size, 3)}
    texts = ("prompts", "settings", "bundle_hash")
    arrays, said = read_npz(options.embeddings, shapes, texts, optional=("x_T", *texts))
    check_bundle(options.embeddings, said, bundle)
    settings = stage_settings(bundle, options)
    if "settings" in said:
        settings["decoder"] = overlay(read_how(options.embeddings, said), vars(options.decoder))
    settings = choose_settings(bundle, stages, settings)
    captions = said.get("prompts") if options.captioned else None
    if captions is not None and len(captions) != count:
        raise UserError(f"{options.embeddings} has {len(captions)} prompts for {count} z_i; give --no-captioned")
    images = decode_points(bundle, options, settings, arrays["z_i"], x_T=arrays.get("x_T"), captions=captions)
    each = [{} if captions is None else {"prompt": caption} for caption in captions or [""] * count]
    about = {} if captions is None else {"prompt": "\n".join(captions)}
    output.save(bundle, {name: settings[name] for name in stages}, images, about, each)


def main() -> None:
    """Reads the options and runs."""
    run(command_line.parse(Options, prog="python -m sample.decode", description=__doc__))


if __name__ == "__main__":
    run_cli(main)
