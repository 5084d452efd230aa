"""3x3 convolution on a CPU, equations (1) and (2) of `unclip_jax.nn.conv`.

XLA's own is slower there than its matrix products, and its filter gradient reaches a third of the machine's speed. So
(2) is nine products of shifted views, and (1) is Winograd's algorithm, or one product of the gathered neighbourhoods
where pixels are so few that reading the kernel is the work.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.nn.cpu import winograd

MIN_WIDTH = 48
"""Channels, in and out, from which Winograd's transforms cost less than they save."""
MIN_MULTIPLICATIONS = 2**27
"""About a millisecond's work: below, XLA's convolution is as good and compiles sooner."""


def _shifts(x: Array) -> list[Array]:
    """Return the nine views x_pad[:, i : i + h, j : j + w]."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]


def _convolve_columns(x: Array, kernel: Array) -> Array:
    b, h, w, c = x.shape
    columns = jnp.concatenate(_shifts(x), axis=-1).reshape(b * h * w, 9 * c)
    return (columns @ kernel.reshape(9 * c, -1)).reshape(b, h, w, -1)


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c e"], otherwise: Callable[[Array, Array], Array]
) -> Float[Array, "b h w e"]:
    """Compute equation (1) of `unclip_jax.nn.conv`; `otherwise` does it where neither way would be faster."""
    b, h, w, c = x.shape
    features = kernel.shape[-1]
    pixels = b * h * w
    small = min(c, features) < MIN_WIDTH or 9 * c * features * pixels < MIN_MULTIPLICATIONS
    if small or h % 2 or w % 2 or x.dtype != jnp.float32:
        return otherwise(x, kernel)
    # From about there on Winograd's algorithm spends more on the kernel's transform than it saves on the products.
    if pixels < 0.4 * features:
        return _convolve_columns(x, kernel)
    return winograd.convolve(x, kernel)


def filter_gradient(x: Float[Array, "b h w c"], grad: Float[Array, "b h w e"]) -> Float[Array, "3 3 c e"]:
    """Compute equation (2)."""
    b, h, w, c = x.shape
    flat_grad = grad.reshape(b * h * w, grad.shape[-1])
    taps = [shift.reshape(b * h * w, c).T @ flat_grad for shift in _shifts(x)]
    return jnp.stack(taps).reshape(3, 3, c, grad.shape[-1])
