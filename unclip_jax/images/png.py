"""PNG files and the text they carry."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write


def save_png(path: str | Path, image: UInt8[np.ndarray, "h w 3"], text: dict[str, str]) -> None:
    """Write a PNG that carries `text` (UTF-8 iTXt chunks, one per key); the file is written whole or not at all.

    Raises:
        UserError: if the name does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"cannot write {path}; give a name that ends in .png")
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    with atomic_write(path) as draft:
        Image.fromarray(image).save(draft, format="PNG", pnginfo=info)


def read_text(path: str | Path) -> dict[str, str]:
    """Read the text that a PNG carries, in file order; empty if none.

    Raises:
        UserError: if the file is not there, not an image, or damaged.
    """
    try:
        with Image.open(path) as image:
            return {key: str(value) for key, value in getattr(image, "text", {}).items()}
    except FileNotFoundError as error:
        raise UserError(f"no file {path}; check the name") from error
    except (OSError, SyntaxError, ValueError) as error:
        # ValueError: more text than Pillow is ready to hold.
        raise UserError(f"cannot read {path} as an image: {error}; give a whole PNG") from error
