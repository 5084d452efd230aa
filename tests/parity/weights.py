"""Weights and inputs that either side can make from a name and a shape, without the other."""

import zlib

import numpy as np


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that depend on name and shape alone."""
    return np.asarray(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape), np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight that leaves no term of a network out: what starts at zero or one is something else here."""
    noise = draw(name, shape)
    if name.endswith("clip_std"):
        return 0.5 + np.abs(noise)
    if len(shape) < 2 and "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * noise
    if len(shape) < 2:
        return np.asarray(0.1 * noise, np.float32)
    # The deviation of torch's own initialisation.
    return (noise / np.sqrt(3 * np.prod(shape[1:]))).astype(np.float32)
