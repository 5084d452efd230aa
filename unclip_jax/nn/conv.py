"""3x3 convolution that is fast on a CPU too, and space-to-depth.

(1) y[b, y, x, :] = sum_{i, j}  x_pad[b, y + i, x + j, :]  W[i, j]
(2) dL/dW[i, j] = sum_{b, y, x}  x_pad[b, y + i, x + j, :]^T  dL/dy[b, y, x, :]

XLA's own convolution on a CPU is slower than its matrix products, and its filter gradient reaches a third of the
machine's speed. So there (2) is nine products of shifted views, and (1) is Winograd's algorithm, or one product of the
gathered neighbourhoods where pixels are so few that reading the kernel is the work. Accelerators keep their own
kernels: the choice is made when the program is lowered for a platform, so one traced model compiles well for either.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from unclip_jax.nn.cpu import winograd
from unclip_jax.nn.remat import named_conv
from unclip_jax.parallel.layout import split_rows

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
MIN_WIDTH = 48
"""Channels, in and out, from which Winograd's transforms cost less than they save."""
MIN_MULTIPLICATIONS = 2**27
"""About a millisecond's work: below, XLA's convolution is as good and compiles sooner."""


def _convolve_native(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)


def _shifts(x: Array) -> list[Array]:
    """The nine views x_pad[:, i : i + h, j : j + w]."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]


def _convolve_columns(x: Array, kernel: Array) -> Array:
    b, h, w, c = x.shape
    columns = jnp.concatenate(_shifts(x), axis=-1).reshape(b * h * w, 9 * c)
    return (columns @ kernel.reshape(9 * c, -1)).reshape(b, h, w, -1)


def _convolve_cpu(x: Array, kernel: Array) -> Array:
    b, h, w, c = x.shape
    features = kernel.shape[-1]
    pixels = b * h * w
    small = min(c, features) < MIN_WIDTH or 9 * c * features * pixels < MIN_MULTIPLICATIONS
    if small or h % 2 or w % 2 or x.dtype != jnp.float32:
        return _convolve_native(x, kernel)
    # From about there on Winograd's algorithm spends more on the kernel's transform than it saves on the products.
    if pixels < 0.4 * features:
        return _convolve_columns(x, kernel)
    return winograd.convolve(x, kernel)


def _convolve(x: Array, kernel: Array) -> Array:
    return lax.platform_dependent(x, kernel, cpu=_convolve_cpu, default=_convolve_native)


@jax.custom_vjp
def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c e"]) -> Float[Array, "b h w e"]:
    """Stride 1, zero padding 1."""
    return _convolve(x, kernel)


def _forward(x: Array, kernel: Array):
    return _convolve(x, kernel), (x, kernel)


def _filter_gradient_of_shifts(x: Array, grad: Array) -> Array:
    b, h, w, c = x.shape
    flat_grad = grad.reshape(b * h * w, grad.shape[-1])
    taps = [shift.reshape(b * h * w, c).T @ flat_grad for shift in _shifts(x)]
    return jnp.stack(taps).reshape(3, 3, c, grad.shape[-1])


def _filter_gradient_native(x: Array, grad: Array) -> Array:
    shape = jax.ShapeDtypeStruct((3, 3, x.shape[-1], grad.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _convolve_native(x, kernel), shape)(grad)[0]


def _backward(residuals, grad: Array):
    x, kernel = residuals
    # Without this a partitioner may give each device a part of the kernel's gradient, and all rows to work it out from.
    x, grad = split_rows(x), split_rows(grad)
    input_gradient = _convolve(grad, kernel[::-1, ::-1].swapaxes(2, 3))
    filter_gradient = lax.platform_dependent(x, grad, cpu=_filter_gradient_of_shifts, default=_filter_gradient_native)
    return input_gradient, filter_gradient


conv3x3.defvjp(_forward, _backward)


class Conv3x3(nn.Module):
    """`conv3x3` with a kernel "kernel" [3 3 c features] and a bias."""

    features: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w e"]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = named_conv(conv3x3(x.astype(self.dtype), kernel.astype(self.dtype)))
        return y + bias.astype(self.dtype)


def space_to_depth(x: Float[Array, "b H W C"], patch: int) -> Float[Array, "b h w c"]:
    """[b, h p, w p, c] -> [b, h, w, p p c]: pixels of a p x p patch become channels."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // patch, patch, width // patch, patch, c).swapaxes(2, 3)
    return x.reshape(b, height // patch, width // patch, patch * patch * c)


def depth_to_space(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b H W C"]:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).swapaxes(2, 3)
    return x.reshape(b, h * patch, w * patch, c // patch**2)
