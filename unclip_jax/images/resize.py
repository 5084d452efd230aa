"""Resizing inside the graph, as two matrix products.

    (1)  y = W_h^T x W_w          W [in, out]: the weight of each input pixel in each output pixel

The matrices are made in float64 numpy and are constants of the graph; `jax.image.resize` makes them anew in
every call.
Pixel centres lie at half-integers, so that an image and its resized copy cover the same square.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

Method = Literal["bicubic", "nearest", "area"]


def resize(images: Float[Array, "b h w c"], size: int, method: Method = "bicubic") -> Float[Array, "b {size} {size} c"]:
    """Resize images to `size` x `size` px, in their own dtype.

    "bicubic" (Keys, a = -1/2) widens its kernel when it shrinks, so it is antialiased and equal to
    `jax.image.resize(..., "cubic")`; "area" averages what each output pixel covers; "nearest" takes the pixel
    at the centre.
    """
    _, height, width, _ = images.shape
    if (height, width) == (size, size):
        return images
    if method == "nearest":
        return _nearest(images, size)
    if method == "area" and height % size == 0 and width % size == 0:
        b, _, _, c = images.shape
        return images.reshape(b, size, height // size, size, width // size, c).mean(axis=(2, 4))
    dtype = images.dtype
    images = images.astype(jnp.float32)
    # By default, accelerators multiply float32 in bfloat16, whose 8 bits pixels already need.
    images = jnp.einsum("bhwc,hH->bHwc", images, weights(height, size, method), precision="highest")
    images = jnp.einsum("bhwc,wW->bhWc", images, weights(width, size, method), precision="highest")
    return images.astype(dtype)


def _nearest(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b {size} {size} c"]:
    b, height, width, c = images.shape
    if size % height == 0 and size % width == 0:
        shape = (b, height, size // height, width, size // width, c)
        return jnp.broadcast_to(images[:, :, None, :, None], shape).reshape(b, size, size, c)
    return images[:, _nearest_rows(height, size)][:, :, _nearest_rows(width, size)]


def _nearest_rows(size_in: int, size_out: int) -> np.ndarray:
    return np.floor((np.arange(size_out) + 0.5) * size_in / size_out).astype(np.int32)


@functools.lru_cache(maxsize=256)
def weights(size_in: int, size_out: int, method: Method) -> Float32[np.ndarray, "{size_in} {size_out}"]:
    """Return the matrix W of equation (1) for one axis; columns sum to 1."""
    ratio = size_in / size_out
    if method == "nearest":
        return np.eye(size_in, dtype=np.float32)[:, _nearest_rows(size_in, size_out)]
    if method == "area":
        edges_in, edges_out = np.arange(size_in + 1.0)[:, None], np.arange(size_out + 1.0)[None] * ratio
        overlap = np.minimum(edges_in[1:], edges_out[:, 1:]) - np.maximum(edges_in[:-1], edges_out[:, :-1])
        weight = np.clip(overlap, 0, None)
    else:
        centres = (np.arange(size_out)[None] + 0.5) * ratio - 0.5
        weight = _cubic(np.abs(centres - np.arange(size_in)[:, None]) / max(ratio, 1.0))
    return (weight / weight.sum(axis=0)).astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return Keys' cubic kernel with a = -1/2, at distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))
