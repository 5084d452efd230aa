"""unCLIP (DALL-E 2) in JAX: train it, sample it, and compare it number for number with PyTorch.

    import unclip_jax

    system = unclip_jax.load("demo")
    images = unclip_jax.text_to_image(system, ["a red circle above a blue square"], seed=0)

What this names is imported when it is first used, so that importing the package takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from unclip_jax.bundle.store import load, save
    from unclip_jax.core.errors import UserError
    from unclip_jax.functions import inpaint, interpolate, invert, text_diff, upscale, variations
    from unclip_jax.sampling.text_to_image import text_to_embedding, text_to_image
    from unclip_jax.stages.settings import SamplingSettings
    from unclip_jax.systems.system import System

__all__ = [
    "SamplingSettings",
    "System",
    "UserError",
    "__version__",
    "inpaint",
    "interpolate",
    "invert",
    "load",
    "save",
    "text_diff",
    "text_to_embedding",
    "text_to_image",
    "upscale",
    "variations",
]

_HOMES = {
    "unclip_jax.bundle.store": ("load", "save"),
    "unclip_jax.core.errors": ("UserError",),
    "unclip_jax.functions": ("inpaint", "interpolate", "invert", "text_diff", "upscale", "variations"),
    "unclip_jax.sampling.text_to_image": ("text_to_embedding", "text_to_image"),
    "unclip_jax.stages.settings": ("SamplingSettings",),
    "unclip_jax.systems.system": ("System",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


_NAMESPACES = ("bundle", "data", "diffusion", "editing", "models", "sampling", "stages", "systems", "training")


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_NAMESPACES})
