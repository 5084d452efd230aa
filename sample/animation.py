"""Frames as a moving picture."""

import importlib.util
import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unclip_jax.errors import UserError
from unclip_jax.files import replacing

SUFFIXES = (".gif", ".mp4")


def check_writable(path: Path) -> None:
    """Raises UserError for an .mp4 where what writes it is missing."""
    if path.suffix.lower() == ".mp4" and not all(map(importlib.util.find_spec, ("imageio", "imageio_ffmpeg"))):
        raise UserError("an .mp4 needs two packages more; run pip install 'unclip_jax[video]', or write a .gif")


def save_animation(path: Path, frames: UInt8[np.ndarray, "n h w 3"], frames_per_second: float) -> None:
    """Writes a .gif, which plays for ever, or an .mp4."""
    if path.suffix.lower() == ".mp4":
        import imageio.v3  # only for those who want it  # pyright: ignore[reportMissingImports]

        how = {"extension": ".mp4", "plugin": "FFMPEG", "fps": frames_per_second, "macro_block_size": 2}
        data = imageio.v3.imwrite("<bytes>", frames, **how)
    else:
        first, *others = [Image.fromarray(frame) for frame in frames]
        buffer = io.BytesIO()
        duration = round(1000 / frames_per_second)
        first.save(buffer, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
        data = buffer.getvalue()
    with replacing(path) as draft:
        draft.write_bytes(data)
