"""Frames as a moving picture."""

import importlib.util
import io
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write

SUFFIXES = (".gif", ".mp4")


def check_writable(path: Path) -> None:
    """Raise UserError for an .mp4 where its writer is not installed."""
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError("an .mp4 needs one package more; run pip install imageio-ffmpeg, or write a .gif")


def save_animation(path: Path, frames: UInt8[np.ndarray, "n h w 3"], frames_per_second: float) -> None:
    """Write a .gif, which plays for ever, or an .mp4, whose sides are made even, as H.264 requires."""
    if path.suffix.lower() == ".mp4":
        try:
            with atomic_write(path) as draft:
                _encode(draft, frames, frames_per_second)
        except UserError as error:
            other = Path(tempfile.mkdtemp(prefix="unclip_jax-")) / path.with_suffix(".gif").name
            save_animation(other, frames, frames_per_second)
            raise UserError(f"{error}; the frames are in {other}") from error
        return
    first, *others = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    duration = round(1000 / frames_per_second)
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
    with atomic_write(path) as draft:
        draft.write_bytes(buffer.getvalue())


def _encode(path: Path, frames: UInt8[np.ndarray, "n h w 3"], frames_per_second: float) -> None:
    import imageio_ffmpeg  # an optional extra  # pyright: ignore[reportMissingImports]

    # Not by imageio itself: that forks, and a fork of a process with JAX's threads may hang.
    _, height, width, _ = frames.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{frames_per_second:g}", "-i", "-"]
    even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-crf", "17", "-pix_fmt", "yuv420p"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *raw, *even, "-f", "mp4", str(path)]
    done = subprocess.run(command, input=frames.tobytes(), capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines() or [f"status {done.returncode}"]
        raise UserError(f"the .mp4 was not written ({lines[-1]})")
