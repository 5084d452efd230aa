"""Change what an image shows by saying what changes.

    python -m sample.text_diff photo.png --from "a red circle" --to "a blue circle" --bundle demo --out out/diff.png
    python -m sample.text_diff photo.png --to "a blue circle" --thetas 0 0.25 0.5

Each image becomes a row: the image itself, then what it turns into, the further to the right the more.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro

from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.editing.text_diff import text_diff
from unclip_jax.sampling.overrides import parse

from .options import FromImages, Job, latents_of, open_session, with_originals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(FromImages):
    """Change what images show by saying what changes."""

    before: Annotated[str, tyro.conf.arg(name="from")] = ""
    """What the image shows; nothing said counts as the empty caption."""
    after: Annotated[str, tyro.conf.arg(name="to")]
    """What it is to show."""
    thetas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    """How far to go, from 0, the image itself, to 1, what the words say and nothing of the image. The paper takes 0.25
    to 0.5."""
    captioned: bool = False
    """Condition the decoder on the words of --to as its caption, too."""
    out: Path = Path("out/text_diff.png")
    """A .png with a row per image, or a folder for a file per image and theta."""

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        if self.before == self.after:
            raise UserError(f'--from and --to say the same, "{self.after}"; say what is to change')
        if not self.thetas:
            raise UserError("no theta given; give one or more from 0 to 1, as in --thetas 0 0.25 0.5")
        for theta in self.thetas:
            if not 0 <= theta <= 1:
                raise UserError(f"theta is {theta}; choose 0 to 1")


def run(options: Options) -> None:
    """Draw and save."""
    names, count = options.names(), len(options.thetas)
    options.check_count(len(names), count)
    source, theta = np.repeat(np.arange(len(names)), count), np.tile(options.thetas, len(names))
    job = Job.start("text_diff", options, [f"{name}_{number:02d}" for name in names for number in range(count)])
    session = open_session(options)
    latents, settings, decode = latents_of(session.system, options, inverted=True)
    before, after = ([caption] * len(source) for caption in (options.before, options.after))
    z_i = text_diff(session.system, jnp.asarray(latents.z_i[source]), before, after, jnp.asarray(theta, jnp.float32))
    images = decode(
        session,
        np.asarray(z_i),
        x_T=None if latents.x_T is None else latents.x_T[source],
        indices=source,
        captions=after if options.captioned else None,
        only=options.only,
    )
    said = {"from": options.before, "to": options.after}
    about = said | {"images": "\n".join(names), "thetas": " ".join(map(str, options.thetas))}
    each = [said | {"image": names[i], "theta": f"{at:g}"} for i, at in zip(source, theta, strict=True)]
    job.save(session.system, settings, images, about, each, with_originals(options, images, count))


def main() -> None:
    """Read the options and run."""
    run(parse(Options, __doc__))


if __name__ == "__main__":
    run_cli(main)
