"""Images as latents (z_i, x_T), the bipartite representation of 2204.06125, section 3; and latents decoded again.

(1) z_i = CLIP(image),   x_T = DDIM^-1(image; z_i)         `unclip_jax.editing.inversion`
(2) x = decoder(z_i; x_T, eta), and the upsamplers

With x_T ~ N(0, I) in (2) all that z_i does not say is sampled anew: variations, as Karlo has them. With the image's own
x_T, DDIM's eta is the strength: 0 gives the image back, 1 keeps little more than z_i.

An .npz of latents holds `z_i` [n d], `x_T` [n h w 3], `names` [n], `settings`, which are the decoder's as JSON, and the
`bundle_hash` of the bundle that they belong to.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.npz import read_npz, write_npz
from unclip_jax.core.reading import parse_json
from unclip_jax.core.unicode import printable
from unclip_jax.editing.embeddings import embed_images, tokenise
from unclip_jax.editing.inversion import CORRECTIONS, invert
from unclip_jax.images.files import read_fitted, stems
from unclip_jax.images.pixels import to_float
from unclip_jax.sampling.batching import batched
from unclip_jax.sampling.session import Request
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems.system import Settings, System

Report = Callable[[str], None]
"""A function that is called with a line of progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
    """Images as z_i and, where they were inverted, x_T; and the decoder's settings that give them back."""

    names: list[str]
    z_i: Float[np.ndarray, "n d"]
    x_T: Float[np.ndarray, "n h w 3"] | None = None
    settings: SamplingSettings | None = None

    def repeat(self, count: int) -> "Latents":
        """Return each of them `count` times, one after another."""
        x_T = None if self.x_T is None else np.repeat(self.x_T, count, axis=0)
        names = [name for name in self.names for _ in range(count)]
        return dataclasses.replace(self, names=names, z_i=np.repeat(self.z_i, count, axis=0), x_T=x_T)


def base_size(system: System) -> int:
    """Return the decoder's image size."""
    return system.stage(system.reader("z_i")).network.sample_shape[0]


def encode_latents(
    system: System,
    images: Sequence[UInt8[np.ndarray, "n _ _ 3"]],
    names: Sequence[str],
    *,
    batch_size: int,
    settings: SamplingSettings | None,
    corrections: int = CORRECTIONS,
    report: Report = lambda line: None,
) -> Latents:
    """Compute equation (1).

    Args:
        images: the same images twice, of CLIP's size and of the decoder's.
        settings: of the inversion; None leaves x_T out.
        corrections: as of `invert`.

    Raises:
        UserError: the bundle has no tokenizer or its CLIP no image tower, or what `invert` raises.
    """
    seen, small = images
    count = len(seen)
    empty = tokenise(system, [""] * count)
    z_i = batched(lambda rows: np.asarray(embed_images(system, jnp.asarray(to_float(seen[rows])))), count, batch_size)

    def find(rows: np.ndarray) -> np.ndarray:
        inputs = {name: jnp.asarray(array[rows]) for name, array in {"z_i": z_i, **empty}.items()}
        assert settings is not None
        found = invert(system, jnp.asarray(to_float(small[rows])), inputs, settings, corrections=corrections)
        report(f"{rows[-1] + 1} of {count} images: inversion")
        return np.asarray(found)

    x_T = None if settings is None else batched(find, count, batch_size)
    return Latents(names=list(names), z_i=z_i, x_T=x_T, settings=settings)


def encode_files(
    system: System,
    files: Sequence[Path],
    *,
    batch_size: int,
    settings: SamplingSettings | None,
    corrections: int = CORRECTIONS,
    report: Report = lambda line: None,
) -> Latents:
    """Call `encode_latents` for image files, each cropped to its central square."""
    sizes = system.encoder("clip").clip.image_tower.image_size, base_size(system)
    options = {"settings": settings, "corrections": corrections, "report": report}
    return encode_latents(system, read_fitted(files, *sizes), stems(files), batch_size=batch_size, **options)


def decoding_request(
    system: System,
    z_i: Float[np.ndarray, "n d"],
    *,
    seed: int,
    x_T: Float[np.ndarray, "n h w 3"] | None = None,
    captions: Sequence[str] | None = None,
    indices: np.ndarray | None = None,
    settings: Settings | None = None,
    until: str | None = None,
    only: int | None = None,
) -> Request:
    """Return the request of equation (2), for a `Session`.

    Args:
        x_T: what the decoder starts from; noise by default.
        captions: what the decoder is conditioned on besides; no captions by default.
        seed, indices, settings, until, only: as of `Request`.
    """
    return Request(
        inputs={"z_i": z_i, **tokenise(system, [""] * len(z_i) if captions is None else captions)},
        seed=seed,
        until=until,
        indices=indices,
        settings=settings,
        without=() if captions is not None else ("caption",),
        starts={} if x_T is None else {system.reader("z_i"): x_T},
        only=only,
    )


def save_latents(path: Path, latents: Latents, system: System) -> None:
    """Write latents with their x_T."""
    assert latents.x_T is not None, "latents without x_T are embeddings"
    arrays = {"z_i": latents.z_i, "x_T": latents.x_T, "names": np.array([printable(name) for name in latents.names])}
    settings = np.array(json.dumps(to_json(latents.settings)))
    write_npz(path, **arrays, settings=settings, bundle_hash=np.array(system.hash))


def load_latents(path: Path, system: System) -> Latents:
    """Read latents as `save_latents` writes them; UserError for any other file, or for those of another bundle."""
    size, width = base_size(system), system.encoder("clip").clip.embed_dim
    shapes = {"z_i": ("n", width), "x_T": ("n", size, size, 3)}
    arrays, texts = read_npz(path, shapes, ("names", "settings", "bundle_hash"))
    check_bundle(path, texts, system)
    if len(texts["names"]) != len(arrays["z_i"]):
        raise UserError(f"{path} has {len(texts['names'])} names for {len(arrays['z_i'])} latents; make it again")
    return Latents(names=texts["names"], settings=read_settings(path, texts), **arrays)


def check_bundle(path: Path, texts: dict[str, list[str]], system: System) -> None:
    """Raise UserError where a file says that it belongs to another bundle."""
    if texts.get("bundle_hash", [system.hash]) != [system.hash]:
        make = "invert the images with this one (python -m sample.invert)"
        raise UserError(f"{path} belongs to another bundle than {system.name}; {make}")


def read_settings(path: Path, texts: dict[str, list[str]]) -> SamplingSettings:
    """Read the decoder's settings from the texts of a file."""
    try:
        return from_json(SamplingSettings, parse_json(" ".join(texts["settings"])), f"{path}: settings")
    except ValueError as error:
        raise UserError(f"{path}: settings are no JSON ({error}); make it with python -m sample.invert") from error
