"""Draw what embeddings say: the cascade from z_i on.

    python -m sample.embed "a red circle" --bundle demo --out out/z.npz
    python -m sample.decode --embeddings out/z.npz --bundle demo --out out/decoded.png

Takes the files of `sample.embed`, `sample.encode` and `sample.invert`: `z_i` [n d]; the captions `prompts` [n] and the
noise `x_T` [n h w 3], to start from, where the file has them.
"""

import dataclasses
from pathlib import Path

from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.npz import read_npz
from unclip_jax.editing.latents import base_size, check_bundle, read_settings
from unclip_jax.sampling.overrides import parse
from unclip_jax.sampling.text_to_image import last_stage

from .options import Drawing, Job, chosen_settings, decode, open_session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Drawing):
    """Draw what embeddings say."""

    embeddings: Path
    """An .npz with z_i; one image is drawn of each."""
    captioned: bool = True
    """Condition the decoder on the captions too, where the file has some."""
    out: Path = Path("out/decoded.png")
    """A .png for all images in one grid, or a folder for one file each."""

    def inputs(self) -> list[Path]:
        """As `Request.inputs`."""
        return [self.embeddings]


def run(options: Options) -> None:
    """Draw and save."""
    count = len(read_npz(options.embeddings, {"z_i": ("n", "d")})[0]["z_i"])
    job = Job.start("decode", options, [f"{i:04d}" for i in range(count)])
    session = open_session(options)
    system = session.system
    width, size = system.encoder("clip").clip.embed_dim, base_size(system)
    shapes = {"z_i": ("n", width), "x_T": ("n", size, size, 3)}
    texts = ("prompts", "settings", "bundle_hash")
    arrays, said = read_npz(options.embeddings, shapes, texts, optional=("x_T", *texts))
    check_bundle(options.embeddings, said, system)
    own = {system.reader("z_i"): read_settings(options.embeddings, said)} if "settings" in said else {}
    stages = system.path({"z_i": True, "tokens": True, "mask": True}, last_stage(system, options.stop_at))
    settings = chosen_settings(system, options, stages, own)
    captions = said.get("prompts") if options.captioned else None
    if captions is not None and len(captions) != count:
        raise UserError(f"{options.embeddings} has {len(captions)} prompts for {count} z_i; give --no-captioned")
    x_T = arrays.get("x_T")
    images = decode(session, options, settings, arrays["z_i"], x_T=x_T, captions=captions, only=options.only)
    each = [{} if captions is None else {"prompt": caption} for caption in captions or [""] * count]
    about = {} if captions is None else {"prompt": "\n".join(captions)}
    job.save(system, settings, images, about, each)


def main() -> None:
    """Read the options and run."""
    run(parse(Options, __doc__))


if __name__ == "__main__":
    run_cli(main)
