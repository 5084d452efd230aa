"""3x3 convolution that is fast on a CPU too, and space-to-depth.

(1) y[b, y, x, :] = sum_{i, j}  x_pad[b, y + i, x + j, :]  W[i, j]
(2) dL/dW[i, j] = sum_{b, y, x}  x_pad[b, y + i, x + j, :]^T  dL/dy[b, y, x, :]

A CPU computes both as `unclip_jax.nn.cpu.conv` says, accelerators have kernels of their own: the choice is made when
the program is lowered for a platform, so one traced model compiles well for either.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from unclip_jax.nn.cpu import conv as cpu
from unclip_jax.nn.remat import named_conv
from unclip_jax.parallel.layout import shard_batch

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _convolve_native(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)


def _convolve(x: Array, kernel: Array) -> Array:
    return lax.platform_dependent(
        x, kernel, cpu=functools.partial(cpu.convolve, otherwise=_convolve_native), default=_convolve_native
    )


@jax.custom_vjp
def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c e"]) -> Float[Array, "b h w e"]:
    """Convolve with stride 1, zero padding 1."""
    return _convolve(x, kernel)


def _forward(x: Array, kernel: Array):
    return _convolve(x, kernel), (x, kernel)


def _filter_gradient_native(x: Array, grad: Array) -> Array:
    shape = jax.ShapeDtypeStruct((3, 3, x.shape[-1], grad.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _convolve_native(x, kernel), shape)(grad)[0]


def _backward(residuals, grad: Array):
    x, kernel = residuals
    # Without this a partitioner may give each device a part of the kernel's gradient, and all rows to work it out from.
    x, grad = shard_batch(x), shard_batch(grad)
    input_gradient = _convolve(grad, kernel[::-1, ::-1].swapaxes(2, 3))
    filter_gradient = lax.platform_dependent(x, grad, cpu=cpu.filter_gradient, default=_filter_gradient_native)
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
    """Turn pixels of each p x p patch into channels: [b, h p, w p, c] -> [b, h, w, p p c]."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // patch, patch, width // patch, patch, c).swapaxes(2, 3)
    return x.reshape(b, height // patch, width // patch, patch * patch * c)


def depth_to_space(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b H W C"]:
    """Invert `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).swapaxes(2, 3)
    return x.reshape(b, h * patch, w * patch, c // patch**2)
