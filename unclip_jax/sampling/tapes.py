"""Noise tapes on disk: an .npz of float32, which another framework can write as well as this one.

x_T     [b ...]       the start
steps   [S b ...]     of each of S steps, in sampling order; absent where there are none
"""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from unclip_jax.core.npz import read_npz, write_npz
from unclip_jax.diffusion import TapeNoise


def write_tape(path: str | os.PathLike[str], tape: TapeNoise) -> None:
    """Write a tape, whole or not at all."""
    steps = {"steps": np.asarray(tape.steps)} if len(tape.steps) else {}
    write_npz(Path(path), x_T=np.asarray(tape.x_T), **steps)


def read_tape(path: str | os.PathLike[str]) -> TapeNoise:
    """Read what `write_tape`, or another program, wrote.

    Raises:
        UserError: the file is no such .npz, or its numbers are not finite.
    """
    arrays, _ = read_npz(Path(path), {"x_T": ("b", ...), "steps": ("steps", "b", ...)}, optional=("steps",))
    x_T = jnp.asarray(arrays["x_T"])
    steps = jnp.asarray(arrays["steps"]) if "steps" in arrays else jnp.zeros((0, *x_T.shape))
    return TapeNoise(x_T=x_T, steps=steps)
