"""The quality of a bundle's edits of pictures of shapes, judged from the pixels by `unclip_jax.eval.shapes.checker`.

    python -m unclip_jax.eval.editing --bundle demo --images 64 [--out docs]

    inversion       PSNR of the reconstruction, in dB, at the decoder's size
    variations      how often colour and shape are kept, and how far the pixels move (root mean square, of 0 to 1)
    text diff       for every theta: how often the new colour (or shape) is there, and the old shape (or colour), place
    interpolation   how often the ends show what the two pictures do, and the largest step over the mean step
    inpainting      how often the prompted object stands under the mask, and gradients across its border and beside it

Pictures are the renderer's own: test scenes with one object, of a colour and shape seen together in training. All but
inversion runs the whole cascade unless `--stop-at` says otherwise; paths go between the first images / frames pictures.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from unclip_jax.bundle import store
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import check_writable, write_all
from unclip_jax.data.captioned_shapes import scenes
from unclip_jax.data.captioned_shapes.render import render
from unclip_jax.editing.embeddings import tokenise
from unclip_jax.editing.inpainting import inpainting_step, with_inpainting_sampler
from unclip_jax.editing.interpolation import OVERSAMPLING, equal_change_positions, frame_positions, interpolate
from unclip_jax.editing.inversion import inversion_settings
from unclip_jax.editing.latents import Latents, base_size, decoding_request, encode_latents
from unclip_jax.editing.text_diff import text_diff
from unclip_jax.eval.shapes.cases import Case, cases
from unclip_jax.eval.shapes.checker import Found, read
from unclip_jax.images.pixels import grid, to_float, to_uint8
from unclip_jax.images.png import save_png
from unclip_jax.images.quality import psnr
from unclip_jax.images.transforms import fit
from unclip_jax.sampling.session import Request, Session
from unclip_jax.sampling.text_to_image import last_stage, text_to_embedding
from unclip_jax.systems.system import System

RENDER = 128
NEAR = 0.1
"""The largest distance, in sides of the image, by which an object in its place may have moved."""
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
    """Condition the decoder on the new caption in a text diff."""
    guidance_scale: float = 1.5
    """Of the decoder in text diffs; inversion is not guided."""
    eta: float = 0.6
    """Strength of the variations."""
    frames: int = 8
    """Steps from one picture to the next."""
    seed: int = 0
    """Of everything that is sampled."""
    stop_at: int | None = None
    """Judge images of this many pixels instead of the last ones."""
    batch_size: int = 32
    """Images sampled at once."""
    out: Path | None = None
    """A folder for a picture of the first of each operation."""

    def __post_init__(self) -> None:
        for name in ("images", "frames", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in self.only:
            if name not in OPERATIONS:
                raise UserError(f"no operation {name!r}; choose of {', '.join(OPERATIONS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """Pictures of one object each, at the sizes of the last stage and of the decoder, and their latents."""

    cases: list[Case]
    true: list[Found]
    """Their objects, as the checker reads them."""
    whole: UInt8[np.ndarray, "n h w 3"]
    base: UInt8[np.ndarray, "n base_h base_w 3"]
    latents: Latents

    @property
    def objects(self) -> list[scenes.Object]:
        """What the pictures show."""
        return [case.scene.objects[0] for case in self.cases]


def subject_of(system: System, options: Options) -> Subject:
    """Invert the first test scenes of one object."""
    chosen = cases("test_seen", 1, options.images)
    pictures = [Image.fromarray(render(case.scene, RENDER)) for case in chosen]
    last = system.path({"z_i": True, "tokens": True, "mask": True}, last_stage(system, options.stop_at))[-1]
    sizes = system.stage(last).network.sample_shape[0], base_size(system), system.encoder("clip").clip.image_tower
    whole, base, seen = (
        np.stack([fit(picture, size) for picture in pictures]) for size in (*sizes[:2], sizes[2].image_size)
    )
    names = [f"{i:04d}" for i in range(len(pictures))]
    own = {"batch_size": len(pictures), "settings": inversion_settings()}
    latents = encode_latents(system, (seen, base), names, **own)
    true = [read(np.asarray(picture))[0] for picture in pictures]
    return Subject(cases=chosen, true=true, whole=whole, base=base, latents=latents)


Draw = Callable[..., UInt8[np.ndarray, "n h w 3"]]
"""(z_i, x_T, captions=, guidance_scale=, eta=, stop_at=) -> images."""


def drawing(session: Session, options: Options) -> Draw:
    """Return a function that decodes embeddings with the settings of inversion."""

    def draw(
        z_i: Float[np.ndarray, "n d"],
        x_T: Float[np.ndarray, "n base_h base_w 3"] | None,
        *,
        captions: Sequence[str] | None = None,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        stop_at: int | None = None,
    ) -> UInt8[np.ndarray, "n h w 3"]:
        system = session.system
        settings = {system.reader("z_i"): inversion_settings(guidance_scale=guidance_scale, eta=eta)}
        until = last_stage(system, stop_at or options.stop_at)
        given: dict[str, Any] = {"seed": options.seed, "captions": captions, "settings": settings, "until": until}
        return to_uint8(session.result(decoding_request(system, np.asarray(z_i), x_T=x_T, **given)))

    return draw


Measured = tuple[str, list[np.ndarray]]
"""What was found, in a line, and strips of images that show it."""


def one_object(images: UInt8[np.ndarray, "n h w 3"]) -> list[Found | None]:
    """Return the object of each image; None where there is none, or several."""
    found = [read(image) for image in images]
    return [each[0] if len(each) == 1 else None for each in found]


def share(holds: list[bool]) -> float:
    """Return the share in per cent."""
    return 100 * float(np.mean(holds))


def alike(found: list[Found | None], wanted: Sequence[scenes.Object | scenes.ObjectQuery], *names: str) -> float:
    """Return the percentage of images whose one object is as wanted in these respects; None matches anything."""
    return share(
        [
            now is not None and all(getattr(each, name) in (None, getattr(now, name)) for name in names)
            for now, each in zip(found, wanted, strict=True)
        ]
    )


def kept(found: list[Found | None], true: list[Found]) -> list[bool]:
    """Return whether objects stand where they stood."""
    return [
        now is not None and float(np.hypot(now.x - before.x, now.y - before.y)) < NEAR
        for now, before in zip(found, true, strict=True)
    ]


def moved(a: UInt8[np.ndarray, "n h w 3"], b: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, " n"]:
    """Return the root mean square of the difference, on a scale of 0 to 1."""
    difference = (a.astype(np.float64) - b.astype(np.float64)) / 255
    return np.sqrt(np.mean(np.square(difference), axis=(1, 2, 3)))


def inversion(session: Session, options: Options, subject: Subject) -> Measured:
    """Measure inversion, at the decoder's size."""
    latents, size = subject.latents, subject.base.shape[1]
    back = drawing(session, options)(latents.z_i, latents.x_T, stop_at=size)
    found = psnr(back, subject.base)
    return f"PSNR median {np.median(found):.1f} dB, least {np.min(found):.1f}", [subject.base, back]


def variations(session: Session, options: Options, subject: Subject) -> Measured:
    """Measure variations, from the inverted x_T at `eta` and from noise."""
    lines, strips, latents = [], [subject.whole], subject.latents
    for name, x_T, eta in (("inverted", latents.x_T, options.eta), ("noise", None, 0.0)):
        images = drawing(session, options)(latents.z_i, x_T, eta=eta)
        found = one_object(images)
        colour, shape = (alike(found, subject.objects, each) for each in ("colour", "shape"))
        far = float(np.median(moved(images, subject.whole)))
        lines.append(f"from {name}, eta {eta}: colour {colour:.0f} %, shape {shape:.0f} %, pixels move {far:.3f}")
        strips.append(images)
    return "; ".join(lines), strips


def text_diffs(session: Session, options: Options, subject: Subject) -> Measured:
    """Measure text diffs, to another colour, then to another shape."""
    rng, latents = np.random.default_rng(options.seed), subject.latents
    lines, strips = [], [subject.whole]
    for kind, values in (("colour", list(scenes.COLOURS)), ("shape", list(scenes.SHAPES))):
        other = "shape" if kind == "colour" else "colour"
        targets = [
            dataclasses.replace(each, **{kind: rng.choice([v for v in values if v != getattr(each, kind)])})
            for each in subject.objects
        ]
        before, after = ([f"a {o.colour} {o.shape}" for o in some] for some in (subject.objects, targets))
        for theta in options.thetas:
            z_i = text_diff(session.system, jnp.asarray(latents.z_i), before, after, theta)
            captions = after if options.captioned else None
            images = drawing(session, options)(
                np.asarray(z_i), latents.x_T, captions=captions, guidance_scale=options.guidance_scale
            )
            found = one_object(images)
            reached, stayed = alike(found, targets, kind), alike(found, targets, other)
            place = share(kept(found, subject.true))
            lines.append(
                f"{kind} at theta {theta}: reached {reached:.0f} %, {other} kept {stayed:.0f} %, place {place:.0f} %"
            )
            strips.append(images)
    return "\n".join(lines), strips


def interpolation(session: Session, options: Options, subject: Subject) -> Measured:
    """Measure interpolation from each picture to the next, with both x_T, in frames of equal change."""
    frames, latents = options.frames, subject.latents
    assert latents.x_T is not None
    both = latents.z_i, latents.x_T
    count = max(2, len(latents.z_i) // frames)
    ends, ratios, strips = [], [], []

    def draw(i: int, positions: Float[jax.Array, " n"], stop_at: int | None) -> UInt8[np.ndarray, "n h w 3"]:
        z_i, x_T = (np.asarray(interpolate(jnp.asarray(each[i : i + 2]), positions)) for each in both)
        return drawing(session, options)(z_i, x_T, stop_at=stop_at)

    for i in range(count - 1):
        survey = frame_positions(2, OVERSAMPLING * frames)
        positions = equal_change_positions(np.asarray(survey), draw(i, survey, subject.base.shape[1]), frames)
        images = draw(i, positions, None)
        found = one_object(images[[0, -1]])
        for now, each in zip(found, subject.objects[i : i + 2], strict=True):
            ends.append(alike([now], [each], "colour", "shape") == 100)
        steps = moved(images[1:], images[:-1])
        ratios.append(float(steps.max() / steps.mean()))
        strips.append(images)
    worst = max(ratios)
    line = f"ends right {share(ends):.0f} %, largest step over mean: median {np.median(ratios):.2f}, worst {worst:.2f}"
    return line, [np.stack(frame) for frame in zip(*strips, strict=True)]


def middle_mask(count: int, size: int) -> Bool[np.ndarray, "n h w"]:
    """Mask the middle of each picture, wide enough for the largest object."""
    margin = size // 8
    mask = np.zeros((count, size, size), bool)
    mask[:, margin:-margin, margin:-margin] = True
    return mask


def inpainting(session: Session, options: Options, subject: Subject) -> Measured:
    """Measure inpainting of another object in place of the one in the middle."""
    system = session.system
    captions = [case.caption for case in subject.cases]
    captions = captions[1:] + captions[:1]
    mask = middle_mask(*subject.whole.shape[:2])
    settings = with_inpainting_sampler(system, system.settings([]))
    z_i = text_to_embedding(system, captions, seed=options.seed, batch_size=options.batch_size)
    inputs, until = {"z_i": z_i, **tokenise(system, captions)}, last_stage(system, options.stop_at)
    known = jnp.asarray(to_float(subject.whole))
    step = inpainting_step(system, known, jnp.asarray(mask), inputs, until=until)
    request = Request(inputs=inputs, seed=options.seed, until=until, settings=settings)
    images = to_uint8(session.result(request, step=step))
    same = bool(np.array_equal(images[~mask], subject.whole[~mask]))
    asked = [scenes.parse(caption).objects[0] for caption in captions]
    right, (inside, across, outside) = alike(one_object(images), asked, "colour", "shape"), gradients(images, mask)
    line = (
        f"asked object {right:.0f} %, outside identical: {same}; from a pixel to the next the images change by "
        f"{across:.2f} of 255 levels across the border, {inside:.2f} inside it, {outside:.2f} outside it"
    )
    return line, [subject.whole, images]


def gradients(images: UInt8[np.ndarray, "n h w 3"], mask: Bool[np.ndarray, "n h w"]) -> tuple[float, float, float]:
    """Return the mean absolute difference of neighbouring pixels at the border of the masks: of pairs one further in,
    of those across it, and of those one further out."""
    x = images.astype(np.float64)
    found: dict[str, list[np.ndarray]] = {"inside": [], "across": [], "outside": []}
    for axis in (1, 2):
        change = np.abs(np.diff(x, axis=axis)).mean(-1)
        first, second = (np.take(mask, range(i, i + change.shape[axis]), axis) for i in (0, 1))
        border = first != second
        beside = np.roll(border, -1, axis) | np.roll(border, 1, axis)
        found["across"].append(change[border])
        found["inside"].append(change[beside & first & second])
        found["outside"].append(change[beside & ~first & ~second])
    inside, across, outside = (float(np.concatenate(each).mean()) for each in found.values())
    return inside, across, outside


MEASURES: dict[str, Callable[[Session, Options, Subject], Measured]] = {
    "inversion": inversion,
    "variations": variations,
    "text_diff": text_diffs,
    "interpolation": interpolation,
    "inpainting": inpainting,
}


def main() -> None:
    """Edit, judge, and print a paragraph per operation."""
    options: Options = command_line.parse(Options, description=__doc__)
    if options.out is not None:
        check_writable([options.out / f"{name}.png" for name in options.only], overwrite=True)
    compilation_cache.enable()
    started = time.perf_counter()
    session = Session(store.load(options.bundle), batch_size=options.batch_size)
    subject = subject_of(session.system, options)
    print(f"{options.images} pictures inverted in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    for name in options.only:
        started = time.perf_counter()
        line, strips = MEASURES[name](session, options, subject)
        print(f"{name}: {line}", flush=True)
        print(f"{name} in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        if options.out is not None:
            columns = [strip[:8] for strip in strips]
            rows = np.stack([image for images in zip(*columns, strict=True) for image in images])
            text = {"software": "unclip_jax"}
            save = functools.partial(save_png, image=grid(rows, columns=len(strips)), text=text)
            write_all([(options.out / f"{name}.png", save)])


if __name__ == "__main__":
    run_cli(main)
