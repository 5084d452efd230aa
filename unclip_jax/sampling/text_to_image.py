"""Captions in, images or embeddings out: the whole system as one function.

system = load("demo")
images = text_to_image(system, ["a red circle above a blue square"] * 4, seed=0)
"""

from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from unclip_jax.core.errors import UserError
from unclip_jax.images.pixels import to_uint8
from unclip_jax.sampling.captions import encode_prompts
from unclip_jax.sampling.session import LoadWeights, Progress, Request, Session
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems.system import Settings, System


def text_to_image(
    system: System,
    captions: Sequence[str],
    *,
    seed: int,
    settings: Settings | None = None,
    stop_at: int | None = None,
    batch_size: int = 16,
    only: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    mesh: Mesh | None = None,
    load_weights: LoadWeights | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Sample one image per caption, or image `only` alone.

    Args:
        seed: of the whole request; image i is the same whatever the batch size.
        settings: by stage; the system's own where a stage is not named.
        stop_at: size in pixels after which to stop; None runs the whole system.
        batch_size, mesh, load_weights: as of `Session`.
        only: sample this image alone, by its number: to the bit the same.
        progress: called after every stage of every batch.

    Raises:
        UserError: a caption is empty, a setting out of range, or the system lacks a stage.
        ValueError: there is no image `only`.

    Warns `TruncationWarning` for every distinct caption that is longer than the context.
    """
    session = Session(system, mesh, batch_size=batch_size, load_weights=load_weights)
    encoded = encode_prompts(system, captions)
    inputs = {"tokens": encoded.tokens, "mask": encoded.mask}
    until = last_stage(system, stop_at)
    request = Request(inputs=inputs, seed=seed, until=until, settings=settings, only=only)
    return to_uint8(session.result(request, progress))


def text_to_embedding(
    system: System,
    captions: Sequence[str],
    *,
    seed: int,
    settings: SamplingSettings | None = None,
    batch_size: int = 16,
) -> Float[np.ndarray, "n d"]:
    """Sample one CLIP image embedding per caption, by the prior alone; the same that `text_to_image` decodes.

    Arguments, errors and warnings as there; `settings` are the prior's.
    """
    session = Session(system, batch_size=batch_size)
    encoded = encode_prompts(system, captions)
    name = system.writer("z_i")
    own = None if settings is None else {name: settings}
    inputs = {"tokens": encoded.tokens, "mask": encoded.mask}
    return session.result(Request(inputs=inputs, seed=seed, until=name, settings=own))


def last_stage(system: System, stop_at: int | None) -> str | None:
    """Return the stage that makes images of `stop_at` px; None, the last, for None. UserError for another size."""
    if stop_at is None:
        return None
    sizes = system.image_sizes()
    if stop_at not in sizes:
        raise UserError(f"stop_at is {stop_at}; bundle {system.name} makes {', '.join(map(str, sizes))} px")
    return sizes[stop_at]
