"""How well a bundle edits pictures of shapes, judged off the pixels by `shapes_checker`.

    python -m unclip_jax.eval.editing --bundle demo --images 64 [--out docs]

    inversion       PSNR of the reconstruction, in dB, at the decoder's size
    variations      how often colour and shape are kept, and how far the pixels move (root mean square, of 0 to 1)
    text diff       for every theta: how often the new colour (or shape) is there, and the old shape (or colour), place
    interpolation   how often the ends show what the two pictures do, and the largest step over the mean step
    inpainting      how often the asked object stands in the hole, and gradients across its border and beside it

Pictures are the renderer's own: test scenes with one object, of a colour and shape seen together in training. All but
inversion runs the whole cascade unless `--stop-at` says otherwise; ways go between the first images / frames pictures.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from unclip_jax.bundle import store
from unclip_jax.bundle.parts import Bundle
from unclip_jax.cascade import decode, default_settings, stages_until
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.data.captioned_shapes import render as draw
from unclip_jax.data.captioned_shapes import scenes as shapes
from unclip_jax.editing.inpainting import inpaint, suited
from unclip_jax.editing.interpolation import along, even, stops
from unclip_jax.editing.inversion import faithful, invert, psnr
from unclip_jax.editing.points import embed_images, tokenise
from unclip_jax.editing.text_diff import text_diff
from unclip_jax.eval.shapes.cases import Case, cases
from unclip_jax.eval.shapes.checker import Found, read
from unclip_jax.images.pixels import grid, to_float, to_uint8
from unclip_jax.images.png import save_png
from unclip_jax.images.transforms import fit
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.text_to_image import text_to_embedding

RENDER = 128
NEAR = 0.1
"""How far an object may have moved, in sides of the image, and stand in its place still."""
SURVEY = 4
"""Small images for each frame of an interpolation, from which its pace is found."""
OPERATIONS = ("inversion", "variations", "text_diff", "interpolation", "inpainting")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Edit pictures of shapes and count what is right."""

    bundle: str = "demo"
    """A bundle's folder, or the name of a shipped one."""
    images: int = 64
    """Pictures to edit, one object each."""
    only: tuple[str, ...] = OPERATIONS
    """Operations to measure."""
    thetas: tuple[float, ...] = (0.25, 0.35, 0.5)
    """Of the text diffs."""
    captioned: bool = True
    """Tell the decoder the new caption when it draws a text diff."""
    guidance_scale: float = 1.5
    """Of the decoder in text diffs; inversion is not guided."""
    eta: float = 0.6
    """Strength of the variations."""
    frames: int = 8
    """Steps from one picture to the next."""
    seed: int = 0
    """Of everything that is drawn."""
    stop_at: int | None = None
    """Judge images of this many pixels instead of the last ones."""
    batch_size: int = 32
    """Images drawn at once."""
    out: Path | None = None
    """A folder for a picture of the first of each operation."""

    def __post_init__(self) -> None:
        for name in ("images", "frames", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in self.only:
            if name not in OPERATIONS:
                raise UserError(f"no operation {name!r}; choose of {', '.join(OPERATIONS)}")


class Subject:
    """Pictures of one object each, and all that the bundle knows of them."""

    def __init__(self, bundle: Bundle, options: Options):
        self.bundle, self.options = bundle, options
        self.cases: list[Case] = cases("test_seen", 1, options.images)
        pictures = [Image.fromarray(draw.render(case.scene, RENDER)) for case in self.cases]
        self.true: list[Found] = [read(np.asarray(picture))[0] for picture in pictures]
        self.size = self._fitted(pictures, self._last_size())
        self.base = self._fitted(pictures, cast(UNetSpec, bundle.part("decoder").spec).image_size)
        clip_spec = cast(CLIPSpec, bundle.part("clip").spec)
        self.z_i = embed_images(bundle, self._fitted(pictures, clip_spec.image_tower.image_size))
        self.nothing = tokenise(bundle, [""] * len(pictures))
        self.x_T = invert(bundle, self.base, self.z_i, *self.nothing, faithful())
        self.key = jax.random.key(options.seed)

    def _last_size(self) -> int:
        name = stages_until(self.bundle, self.options.stop_at, "decoder")[-1]
        return cast(UNetSpec, self.bundle.parts[name].spec).image_size

    @staticmethod
    def _fitted(pictures: list[Image.Image], size: int) -> Float[Array, "b {size} {size} 3"]:
        return jnp.asarray(to_float(np.stack([fit(picture, size) for picture in pictures])))

    @property
    def objects(self) -> list[shapes.Object]:
        """What the pictures show."""
        return [case.scene.objects[0] for case in self.cases]

    def draw(
        self,
        z_i: Array,
        x_T: Array | None,
        *,
        captions: list[str] | None = None,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        stop_at: int | None = None,
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Images of embeddings, batch after batch."""
        tokens, mask = tokenise(self.bundle, captions or [""] * len(z_i))
        how = {"decoder": faithful(guidance_scale=guidance_scale, eta=eta)}
        drawn, size = [], min(self.options.batch_size, len(z_i))
        for first in range(0, len(z_i), size):
            # The last batch is padded, so that it runs the program of the others.
            rows = np.minimum(np.arange(first, first + size), len(z_i) - 1)
            stages = decode(
                self.bundle,
                z_i[rows],
                tokens[rows],
                mask[rows],
                self.key,
                captioned=captions is not None,
                x_T=None if x_T is None else x_T[rows],
                indices=jnp.asarray(rows),
                settings=how,
                stop_at=stop_at or self.options.stop_at,
            )
            drawn.append(to_uint8(list(stages)[-1].value))
        return np.concatenate(drawn)[: len(z_i)]


def one_object(images: UInt8[np.ndarray, "n h w 3"]) -> list[Found | None]:
    """The object of each image; None where there is none, or several."""
    found = [read(image) for image in images]
    return [each[0] if len(each) == 1 else None for each in found]


def share(holds: list[bool]) -> float:
    """In per cent."""
    return 100 * float(np.mean(holds))


def alike(found: list[Found | None], wanted: Sequence[shapes.Object | shapes.ObjectQuery], *names: str) -> float:
    """The share, in per cent, of images whose one object is as wanted in these respects; None asks for nothing."""
    return share(
        [
            now is not None and all(getattr(each, name) in (None, getattr(now, name)) for name in names)
            for now, each in zip(found, wanted, strict=True)
        ]
    )


def kept(found: list[Found | None], true: list[Found]) -> list[bool]:
    """Whether objects stand where they stood."""
    return [
        now is not None and float(np.hypot(now.x - before.x, now.y - before.y)) < NEAR
        for now, before in zip(found, true, strict=True)
    ]


def moved(a: UInt8[np.ndarray, "n h w 3"], b: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " n"]:
    """Root mean square of the difference, on a scale of 0 to 1."""
    difference = (a.astype(np.float64) - b.astype(np.float64)) / 255
    return np.sqrt(np.mean(np.square(difference), axis=(1, 2, 3)))


def inversion(subject: Subject) -> tuple[str, list[np.ndarray]]:
    """At the decoder's size: what x_T is of."""
    size = subject.base.shape[1]
    back = subject.draw(subject.z_i, subject.x_T, stop_at=size)
    before = to_uint8(subject.base)
    found = psnr(back, before)
    return f"PSNR median {np.median(found):.1f} dB, least {np.min(found):.1f}", [before, back]


def variations(subject: Subject) -> tuple[str, list[np.ndarray]]:
    """From the inverted x_T at `eta`, and from noise."""
    before, lines, strips = to_uint8(subject.size), [], [to_uint8(subject.size)]
    for name, x_T, eta in (("inverted", subject.x_T, subject.options.eta), ("noise", None, 0.0)):
        images = subject.draw(subject.z_i, x_T, eta=eta)
        found = one_object(images)
        colour, shape = (alike(found, subject.objects, each) for each in ("colour", "shape"))
        far = float(np.median(moved(images, before)))
        lines.append(f"from {name}, eta {eta}: colour {colour:.0f} %, shape {shape:.0f} %, pixels move {far:.3f}")
        strips.append(images)
    return "; ".join(lines), strips


def text_diffs(subject: Subject) -> tuple[str, list[np.ndarray]]:
    """To another colour, then to another shape."""
    rng, options = np.random.default_rng(subject.options.seed), subject.options
    lines, strips = [], [to_uint8(subject.size)]
    for kind, values in (("colour", list(shapes.COLOURS)), ("shape", list(shapes.SHAPES))):
        other = "shape" if kind == "colour" else "colour"
        targets = [
            dataclasses.replace(each, **{kind: rng.choice([v for v in values if v != getattr(each, kind)])})
            for each in subject.objects
        ]
        before, after = ([f"a {o.colour} {o.shape}" for o in some] for some in (subject.objects, targets))
        for theta in options.thetas:
            images = subject.draw(
                text_diff(subject.bundle, subject.z_i, before, after, theta),
                subject.x_T,
                captions=after if options.captioned else None,
                guidance_scale=options.guidance_scale,
            )
            found = one_object(images)
            reached, stayed = alike(found, targets, kind), alike(found, targets, other)
            place = share(kept(found, subject.true))
            lines.append(
                f"{kind} at theta {theta}: reached {reached:.0f} %, {other} kept {stayed:.0f} %, place {place:.0f} %"
            )
            strips.append(images)
    return "\n".join(lines), strips


def interpolation(subject: Subject) -> tuple[str, list[np.ndarray]]:
    """From each picture to the next, with both x_T, at an even pace."""
    frames, size = subject.options.frames, subject.base.shape[1]
    count = max(2, len(subject.z_i) // frames)
    ends, ratios, strips = [], [], []

    def draw(i: int, places: Float[Array, " n"], stop_at: int | None) -> UInt8[np.ndarray, "n h w 3"]:
        z_i, x_T = (along(points[i : i + 2], places) for points in (subject.z_i, subject.x_T))
        return subject.draw(z_i, x_T, stop_at=stop_at)

    for i in range(count - 1):
        survey = stops(2, SURVEY * frames)
        places = even(np.asarray(survey), draw(i, survey, size), frames)
        images = draw(i, places, None)
        found = one_object(images[[0, -1]])
        for now, each in zip(found, subject.objects[i : i + 2], strict=True):
            ends.append(alike([now], [each], "colour", "shape") == 100)
        steps = moved(images[1:], images[:-1])
        ratios.append(float(steps.max() / steps.mean()))
        strips.append(images)
    worst = max(ratios)
    line = f"ends right {share(ends):.0f} %, largest step over mean: median {np.median(ratios):.2f}, worst {worst:.2f}"
    return line, [np.stack(frame) for frame in zip(*strips, strict=True)]


def hole_of(subject: Subject) -> Bool[Array, "n h w"]:
    """The middle of each picture, wide enough for the largest object."""
    size = subject.size.shape[1]
    margin = size // 8
    hole = np.zeros((len(subject.size), size, size), bool)
    hole[:, margin:-margin, margin:-margin] = True
    return jnp.asarray(hole)


def inpainting(subject: Subject) -> tuple[str, list[np.ndarray]]:
    """The object in the middle for another one."""
    bundle, options = subject.bundle, subject.options
    captions = [case.caption for case in subject.cases]
    captions = captions[1:] + captions[:1]
    hole = hole_of(subject)
    settings = suited(bundle, default_settings(bundle))
    z_i = jnp.asarray(text_to_embedding(bundle, captions, seed=options.seed, batch_size=options.batch_size))
    tokens, mask = tokenise(bundle, captions)
    drawn, size = [], min(options.batch_size, len(captions))
    for first in range(0, len(captions), size):
        rows = np.minimum(np.arange(first, first + size), len(captions) - 1)
        told = z_i[rows], tokens[rows], mask[rows]
        stages = inpaint(
            bundle,
            subject.size[rows],
            hole[rows],
            *told,
            subject.key,
            indices=jnp.asarray(rows),
            settings=settings,
            stop_at=options.stop_at,
        )
        drawn.append(to_uint8(list(stages)[-1].value))
    images, before = np.concatenate(drawn)[: len(captions)], to_uint8(subject.size)
    outside = ~np.asarray(hole)[..., None]
    same = bool(np.array_equal(images * outside, before * outside))
    found = one_object(images)
    asked = [shapes.parse(caption).objects[0] for caption in captions]
    right, (inside, across, outside) = alike(found, asked, "colour", "shape"), gradients(images, np.asarray(hole))
    line = (
        f"asked object {right:.0f} %, outside identical: {same}; from a pixel to the next the images change by "
        f"{across:.2f} of 255 levels across the border, {inside:.2f} inside it, {outside:.2f} outside it"
    )
    return line, [before, images]


def gradients(images: UInt8[np.ndarray, "n h w 3"], hole: Bool[np.ndarray, "n h w"]) -> tuple[float, float, float]:
    """Mean absolute difference of neighbouring pixels at the border of the holes: of pairs one further in, of those
    across it, and of those one further out."""
    x = images.astype(np.float64)
    found: dict[str, list[np.ndarray]] = {"inside": [], "across": [], "outside": []}
    for axis in (1, 2):
        change = np.abs(np.diff(x, axis=axis)).mean(-1)
        first, second = (np.take(hole, range(i, i + change.shape[axis]), axis) for i in (0, 1))
        border = first != second
        beside = np.roll(border, -1, axis) | np.roll(border, 1, axis)
        found["across"].append(change[border])
        found["inside"].append(change[beside & first & second])
        found["outside"].append(change[beside & ~first & ~second])
    inside, across, outside = (float(np.concatenate(each).mean()) for each in found.values())
    return inside, across, outside


MEASURES = {
    "inversion": inversion,
    "variations": variations,
    "text_diff": text_diffs,
    "interpolation": interpolation,
    "inpainting": inpainting,
}


def main() -> None:
    """Edits, judges, prints a paragraph per operation."""
    options: Options = command_line.parse(Options, prog="python -m unclip_jax.eval.editing", description=__doc__)
    compilation_cache.enable()
    started = time.perf_counter()
    subject = Subject(store.load(options.bundle), options)
    print(f"{options.images} pictures inverted in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    for name in options.only:
        started = time.perf_counter()
        line, strips = MEASURES[name](subject)
        print(f"{name}: {line}", flush=True)
        print(f"{name} in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        if options.out is not None:
            columns = [strip[:8] for strip in strips]
            rows = np.stack([image for images in zip(*columns, strict=True) for image in images])
            save_png(options.out / f"{name}.png", grid(rows, columns=len(strips)), {"software": "unclip_jax"})


if __name__ == "__main__":
    run_cli(main)
