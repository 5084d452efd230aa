"""What a system can do, one function each: 8-bit pictures and captions in, 8-bit pictures out.

    system = unclip_jax.load("demo")
    near = unclip_jax.variations(system, [picture], num_images=4, seed=0)

Pictures are uint8 [h w 3] of any size, cropped to the central square; each function is the editing operation of its
name in `unclip_jax.editing`, in batches. All raise UserError for a setting out of range or a stage that the system
lacks.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from unclip_jax.diffusion.samplers.repaint import Resampling
from unclip_jax.editing import interpolation
from unclip_jax.editing.embeddings import tokenise
from unclip_jax.editing.inpainting import BASE, inpainting_step, resize_mask, with_inpainting_sampler
from unclip_jax.editing.inversion import inversion_settings
from unclip_jax.editing.latents import Latents, base_size, decoding_request, encode_latents
from unclip_jax.editing.text_diff import text_diff as turn
from unclip_jax.editing.upscaling import upscaling_stages
from unclip_jax.images.pixels import to_float, to_uint8
from unclip_jax.images.transforms import fit, square_crop
from unclip_jax.sampling.session import Request, Session
from unclip_jax.sampling.text_to_image import last_stage, text_to_embedding
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems.system import Settings, System

Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]]


def invert(
    system: System, images: Pictures, *, settings: SamplingSettings | None = None, batch_size: int = 16
) -> Latents:
    """Find the latents (z_i, x_T) from which the decoder samples these images.

    Args:
        settings: of the decoder, DDIM's; `editing.inversion.inversion_settings` by default.
    """
    return _latents(system, images, settings or inversion_settings(), batch_size)


def variations(
    system: System,
    images: Pictures,
    *,
    seed: int,
    num_images: int = 4,
    strength: float | None = None,
    settings: Settings | None = None,
    stop_at: int | None = None,
    batch_size: int = 16,
) -> UInt8[np.ndarray, "n k h w 3"]:
    """Sample pictures that CLIP takes for the same thing as each of `images`.

    Args:
        strength: None starts from noise of its own. A number starts from the image's own x_T and is DDIM's eta: 0 gives
            the image back, 1 keeps little more than z_i.
        seed, settings, stop_at, batch_size: as of `text_to_image`.
    """
    chosen, own = dict(settings or {}), None
    if strength is not None:
        own = inversion_settings(eta=strength)
        chosen = {system.reader("z_i"): own} | chosen
        own = chosen[system.reader("z_i")]
    latents = _latents(system, images, own, batch_size).repeat(num_images)
    drawn = _decode(system, latents, chosen, stop_at=stop_at, batch_size=batch_size, seed=seed)
    return drawn.reshape(len(images), num_images, *drawn.shape[1:])


def interpolate(
    system: System,
    images: Pictures,
    *,
    seed: int,
    frames: int = 8,
    settings: Settings | None = None,
    stop_at: int | None = None,
    batch_size: int = 16,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Sample the path through two or more images, `frames` from each to the next, along great circles of z_i and x_T.

    Arguments as of `variations`; settings of the decoder are those of the inversion too.
    """
    decoder = system.reader("z_i")
    chosen = {decoder: inversion_settings()} | dict(settings or {})
    latents = _latents(system, images, chosen[decoder], batch_size)
    positions = interpolation.frame_positions(len(images), frames)
    path = jax.jit(interpolation.interpolate)
    z_i, x_T = (np.asarray(path(jnp.asarray(points), positions)) for points in (latents.z_i, latents.x_T))
    between = Latents(names=[str(i) for i in range(len(z_i))], z_i=z_i, x_T=x_T)
    same = np.zeros(len(z_i), np.int32)
    return _decode(system, between, chosen, stop_at=stop_at, batch_size=batch_size, seed=seed, indices=same)


def text_diff(
    system: System,
    images: Pictures,
    before: str,
    after: str,
    *,
    seed: int,
    thetas: Sequence[float] = (0.25, 0.5),
    settings: Settings | None = None,
    stop_at: int | None = None,
    batch_size: int = 16,
) -> UInt8[np.ndarray, "n k h w 3"]:
    """Sample each image changed as the caption `before` is changed to `after`, by every angle of `thetas` in [0, 1].

    Other arguments as of `interpolate`.
    """
    decoder, count = system.reader("z_i"), len(thetas)
    chosen = {decoder: inversion_settings()} | dict(settings or {})
    latents = _latents(system, images, chosen[decoder], batch_size).repeat(count)
    angles = jnp.asarray(np.tile(thetas, len(images)), jnp.float32)
    rows = len(angles)
    z_i = np.asarray(turn(system, jnp.asarray(latents.z_i), [before] * rows, [after] * rows, angles))
    source = np.repeat(np.arange(len(images)), count)
    changed = dataclasses.replace(latents, z_i=z_i)
    drawn = _decode(system, changed, chosen, stop_at=stop_at, batch_size=batch_size, seed=seed, indices=source)
    return drawn.reshape(len(images), count, *drawn.shape[1:])


def inpaint(
    system: System,
    images: Pictures,
    masks: Sequence[Bool[np.ndarray, "_ _"]],
    captions: Sequence[str],
    *,
    seed: int,
    resampling: Resampling = BASE,
    settings: Settings | None = None,
    stop_at: int | None = None,
    batch_size: int = 16,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Fill what each mask covers with what its caption says; what it does not cover comes back as it was.

    Args:
        masks: True where to generate, of the size of their images.
        resampling: how often and how far RePaint goes back, where the decoder is no inpainting network.
        seed, settings, stop_at, batch_size: as of `text_to_image`.
    """
    until = last_stage(system, stop_at)
    stages = system.path({"tokens": True, "mask": True}, until)
    chosen = system.settings(stages, with_inpainting_sampler(system, system.settings([], settings)))
    size = system.stage(stages[-1]).network.sample_shape[0]
    prior = chosen[system.writer("z_i")]
    z_i = text_to_embedding(system, captions, seed=seed, settings=prior, batch_size=batch_size)
    inputs = {"z_i": z_i, **tokenise(system, captions)}
    whole = _fitted(images, size)
    squares = [square_crop(Image.fromarray(np.asarray(mask))) for mask in masks]
    mask = np.concatenate([resize_mask(jnp.asarray(np.array(square)[None] > 0), size) for square in squares])
    known = jnp.asarray(to_float(whole))
    step = inpainting_step(system, known, jnp.asarray(mask), inputs, resampling=resampling, until=until)
    session = Session(system, batch_size=batch_size)
    request = Request(inputs=inputs, seed=seed, until=until, settings=chosen)
    drawn = to_uint8(session.result(request, step=step))
    return np.where(mask[..., None], drawn, whole)


def upscale(
    system: System,
    images: Pictures,
    *,
    seed: int,
    settings: Settings | None = None,
    from_size: int | None = None,
    stop_at: int | None = None,
    batch_size: int = 16,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Enlarge images with the system's upsamplers.

    Args:
        from_size: side in px of what the first upsampler that runs reads; that of the system's first by default.
        seed, settings, stop_at, batch_size: as of `text_to_image`.
    """
    stages = upscaling_stages(system, from_size, stop_at)
    (array,) = system.stage(stages[0]).reads
    inputs: dict[str, Float[np.ndarray, "n h w 3"]]
    inputs = {array: np.asarray(to_float(_fitted(images, int(array.removeprefix("image_")))))}
    request = Request(inputs=inputs, seed=seed, until=stages[-1], settings=settings)
    return to_uint8(Session(system, batch_size=batch_size).result(request))


def _fitted(images: Pictures, size: int) -> UInt8[np.ndarray, "n {size} {size} 3"]:
    return np.stack([fit(Image.fromarray(np.asarray(image)), size) for image in images])


def _latents(system: System, images: Pictures, settings: SamplingSettings | None, batch_size: int) -> Latents:
    sizes = system.encoder("clip").clip.image_tower.image_size, base_size(system)
    seen = [_fitted(images, size) for size in sizes]
    names = [str(number) for number in range(len(images))]
    return encode_latents(system, seen, names, batch_size=batch_size, settings=settings)


def _decode(
    system: System,
    latents: Latents,
    settings: Settings,
    *,
    seed: int,
    stop_at: int | None,
    batch_size: int,
    indices: np.ndarray | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    request = decoding_request(
        system,
        latents.z_i,
        seed=seed,
        x_T=latents.x_T,
        indices=indices,
        settings=settings,
        until=last_stage(system, stop_at),
    )
    return to_uint8(Session(system, batch_size=batch_size).result(request))
