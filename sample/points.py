"""Images as points (z_i, x_T), from image files or from an .npz; and points decoded again.

An .npz of points holds `z_i` [n d], `x_T` [n h w 3], `names` [n], `settings`, which are the decoder's as JSON, and the
`bundle_hash` of the bundle that they belong to.
"""

import dataclasses
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from sample.common import (
    Drawing,
    FromImages,
    image_files,
    in_batches,
    last,
    overlay,
    read_fitted,
    stage_settings,
    stems,
)
from sample.output import write_npz
from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import choose_settings, decode, stages_until
from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.editing.inversion import CORRECTIONS, faithful, invert
from unclip_jax.editing.points import embed_images, tokenise
from unclip_jax.images.pixels import grid, to_float
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.settings import StageSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
    """Images as z_i and, where they were inverted, x_T; and how x_T is decoded to give them back."""

    names: list[str]
    z_i: Float[np.ndarray, "n d"]
    x_T: Float[np.ndarray, "n h w 3"] | None = None
    how: StageSettings | None = None


def base_size(bundle: Bundle) -> int:
    """The decoder's image size."""
    return cast(UNetSpec, bundle.part("decoder").spec).image_size


def find_points(
    bundle: Bundle, files: Sequence[Path], batch_size: int, how: StageSettings | None, corrections: int = CORRECTIONS
) -> Points:
    """The points of image files; without x_T where `how` is None."""
    size = cast(CLIPSpec, bundle.part("clip").spec).image_tower.image_size
    seen, small = read_fitted(files, size, base_size(bundle))
    tokens, mask = tokenise(bundle, [""] * len(files))

    def embed(rows: np.ndarray) -> np.ndarray:
        return np.asarray(embed_images(bundle, jnp.asarray(to_float(seen[rows]))))

    z_i = in_batches(embed, len(files), batch_size)

    def find(rows: np.ndarray) -> np.ndarray:
        images, told = jnp.asarray(to_float(small[rows])), (jnp.asarray(z_i[rows]), tokens[rows], mask[rows])
        found = np.asarray(invert(bundle, images, *told, cast(StageSettings, how), corrections=corrections))
        print(f"{rows[-1] + 1} of {len(files)} images: inversion", file=sys.stderr)
        return found

    x_T = None if how is None else in_batches(find, len(files), batch_size)
    return Points(names=stems(files), z_i=z_i, x_T=x_T, how=how)


def source_names(options: FromImages) -> list[str]:
    """What the images that a command is given are called, one name each, as names of files may be.

    Raises UserError where the command makes no sense, or there are none.
    """
    options.check()
    if options.points is None:
        return stems(image_files(options.images))
    names = read_npz(options.points, {}, ("names",))[1]["names"]
    # The file may come from anywhere: no name may lead to another folder.
    return stems([Path(f"{name}.npz" if name.isprintable() else "image.npz") for name in names])


def settings_for(
    bundle: Bundle, options: FromImages, how: StageSettings | None = None, eta: float | None = None
) -> dict[str, StageSettings]:
    """Settings of the stages that run: the decoder's from `how`, all others from the bundle, the command's on top."""
    stages = stages_until(bundle, options.stop_at, "decoder")
    settings = stage_settings(bundle, options)
    given = {"steps": options.steps, "guidance_scale": options.guidance_scale, "eta": eta}
    settings["decoder"] = overlay(settings["decoder"] if how is None else how, given)
    settings = choose_settings(bundle, stages, settings)
    return {name: settings[name] for name in stages}


def points_of(
    bundle: Bundle, options: FromImages, *, inverted: bool, eta: float | None = None
) -> tuple[Points, dict[str, StageSettings]]:
    """The points that a command is given, of its images or from its file, and the settings that decode them.

    Args:
        inverted: whether x_T is wanted.
        eta: of DDIM; where it is not given, 0 for inverted images and what the bundle says for others.
    """
    if options.points is not None:
        points = read_points(options.points, bundle)
        settings = settings_for(bundle, options, points.how if inverted else None, eta)
        return points if inverted else dataclasses.replace(points, x_T=None), settings
    settings = settings_for(bundle, options, faithful() if inverted else None, eta)
    how = settings["decoder"] if inverted else None
    return find_points(bundle, image_files(options.images), options.batch_size, how), settings


def with_originals(
    options: FromImages, images: UInt8[np.ndarray, "n h w 3"], columns: int
) -> UInt8[np.ndarray, "grid_h grid_w 3"] | None:
    """A sheet with a row of so many columns for each image, the image itself first where it is a file.

    None for a request of a single image.
    """
    if options.only is not None:
        return None
    if options.points is not None:
        return grid(images, columns)
    side = images.shape[1]
    originals = read_fitted(image_files(options.images), side)[0]
    rows = images.reshape(-1, columns, side, side, 3)
    return grid(np.concatenate([originals[:, None], rows], axis=1).reshape(-1, side, side, 3), 1 + columns)


def write_points(path: Path, points: Points, bundle: Bundle) -> None:
    """Writes points with their x_T."""
    settings = np.array(json.dumps(to_json(points.how)))
    arrays = {"z_i": points.z_i, "x_T": cast(np.ndarray, points.x_T), "names": np.array(points.names)}
    write_npz(path, **arrays, settings=settings, bundle_hash=np.array(bundle.hash))


def read_points(path: Path, bundle: Bundle) -> Points:
    """Points as `write_points` leaves them; UserError for any other file, or for those of another bundle."""
    size, width = base_size(bundle), cast(CLIPSpec, bundle.part("clip").spec).embed_dim
    shapes = {"z_i": ("n", width), "x_T": ("n", size, size, 3)}
    arrays, texts = read_npz(path, shapes, ("names", "settings", "bundle_hash"))
    check_bundle(path, texts, bundle)
    if len(texts["names"]) != len(arrays["z_i"]):
        raise UserError(f"{path} has {len(texts['names'])} names for {len(arrays['z_i'])} points; make it again")
    return Points(names=texts["names"], how=read_how(path, texts), **arrays)


def check_bundle(path: Path, texts: dict[str, list[str]], bundle: Bundle) -> None:
    """Raises UserError where a file says that it belongs to another bundle."""
    if texts.get("bundle_hash", [bundle.hash]) != [bundle.hash]:
        make = "invert the images with this one (python -m sample.invert)"
        raise UserError(f"{path} belongs to another bundle than {bundle.name}; {make}")


def read_how(path: Path, texts: dict[str, list[str]]) -> StageSettings:
    """The decoder's settings that a file names."""
    try:
        return from_json(StageSettings, json.loads(" ".join(texts["settings"])), f"{path}: settings")
    except ValueError as error:
        raise UserError(f"{path}: settings are no JSON ({error}); make it with python -m sample.invert") from error


def read_npz(
    path: Path, shapes: dict[str, tuple[int | str, ...]], texts: Sequence[str] = (), optional: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Arrays of finite float32 numbers and lists of texts of an .npz.

    Args:
        shapes: of the arrays; a word stands for a size that is the same wherever the word is.
        texts: names of the lists; a lone text comes as a list of one.
        optional: names, of either, that may be missing.

    Raises:
        UserError: the file cannot be read, or is another.
    """
    sizes: dict[str, int] = {}
    arrays, lists = {}, {}
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a lone array")
            for name in [*shapes, *texts]:
                if name not in file.files:
                    if name in optional:
                        continue
                    has = ", ".join(file.files) or "nothing"
                    raise UserError(f"{path} has no {name}, only {has}; give a file that has it")
                array = file[name]
                if name in shapes:
                    arrays[name] = _checked(path, name, array, shapes[name], sizes)
                elif array.dtype.kind != "U" or array.ndim > 1:
                    raise UserError(f"{path}: {name} is no list of texts; give a file that has one")
                else:
                    lists[name] = array.reshape(-1).tolist()
    except FileNotFoundError as error:
        raise UserError(f"no file {path}; check the name") from error
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no .npz that can be read ({error}); give another file") from error
    return arrays, lists


def _checked(
    path: Path, name: str, array: np.ndarray, shape: tuple[int | str, ...], sizes: dict[str, int]
) -> Float[np.ndarray, "..."]:
    fits = array.ndim == len(shape) and all(
        size == (sizes.setdefault(want, size) if isinstance(want, str) else want)
        for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind != "f" or 0 in array.shape:
        found = f"{array.dtype} of shape ({', '.join(map(str, array.shape))})"
        raise UserError(f"{path}: {name} is {found}; numbers of shape ({', '.join(map(str, shape))}) are needed")
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {name} holds numbers that are not finite; make the file again")
    return array.astype(np.float32)


def decode_points(
    bundle: Bundle,
    options: Drawing,
    settings: dict[str, StageSettings],
    z_i: Float[np.ndarray, "n d"],
    *,
    x_T: Float[np.ndarray, "n h w 3"] | None = None,
    indices: Int[np.ndarray, " n"] | None = None,
    captions: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "m H W 3"]:
    """Images of embeddings, all or the one that `options.only` names.

    Args:
        x_T: what the decoder starts from; noise by default.
        indices: whose noise each image has; 0, 1, ... by default.
        captions: what the decoder is told; no captions by default.
    """
    count = len(z_i)
    tokens, mask = tokenise(bundle, [""] * count if captions is None else list(captions))
    indices = np.arange(count) if indices is None else indices

    def draw(rows: np.ndarray) -> np.ndarray:
        stages = decode(
            bundle,
            jnp.asarray(z_i[rows]),
            tokens[rows],
            mask[rows],
            jax.random.key(options.seed),
            captioned=captions is not None,
            x_T=None if x_T is None else jnp.asarray(x_T[rows]),
            indices=jnp.asarray(indices[rows]),
            settings=settings,
            stop_at=options.stop_at,
        )
        return last((f"{rows[-1] + 1} of {count} images: {each.part}", each.value) for each in stages)

    return in_batches(draw, count, options.batch_size, options.only)
