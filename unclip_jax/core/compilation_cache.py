"""XLA's persistent compilation cache, so that the second run of a script starts at once."""

import os

import jax

from unclip_jax.core.files import cache_folder


def enable() -> None:
    """Keep compiled programs under `$XDG_CACHE_HOME/unclip_jax/xla`, for scripts.

    `UNCLIP_JAX_NO_CACHE=1` in the environment turns it off.
    """
    if os.environ.get("UNCLIP_JAX_NO_CACHE") == "1":
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
