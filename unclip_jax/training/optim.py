"""AdamW as the paper runs it (table 3), Muon or Adafactor, and the moving average of the parameters (EMA).

    g     <- g * min(1, clip_norm / |g|)                                                      (1)
    u     <- direction(g) + weight_decay * theta       (decay: kernels only)                  (2)
    theta <- theta - learning_rate(step) * u                                                  (3)
    ema   <- d * ema + (1 - d) * theta,  d = min(ema_decay, (1 + step) / (10 + step))         (4)

The warm-up of d keeps the first, random parameters out of the average. The direction is Adam's, except that Muon
(Jordan et al., 2024, kellerjordan.github.io/posts/muon) moves a kernel, as a matrix [fan_in, fan_out] = U S V^T of its
momentum, by

    direction(g) = 0.2 sqrt(max(fan_in, fan_out)) U V^T                                       (5)

whose root mean square is 0.2 whatever the shape, about Adam's, so that one learning rate serves both (Liu et al.,
2025, arXiv 2502.16982, section 2.2); `adam_rate` scales what Adam moves. Five Newton-Schulz iterations stand in for
U V^T, with singular values that lie around 1. `unclip_jax.training.moments` keeps the moments of both in fewer bits.

Adafactor (Shazeer & Stern, 2018, arXiv 1804.04235) keeps of the squared gradients of a kernel only the means R of
their rows and C of their columns, and has no momentum:

    u = g / sqrt(R C^T / mean(R)),   direction(g) = u / max(1, rms(u)),   decay of R and C: 1 - step^-0.8           (6)

What has no two dimensions of 128 or more keeps its squares one by one. The root mean square is about Adam's again.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from unclip_jax.parallel.rules import path_name
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.moments import quantize_moments


def learning_rate(optim: OptimConfig, total_steps: int) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """Return the rate of step 0, 1, ...: a linear warm-up that starts above 0, then constant or a cosine to 0."""

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        warmup = jnp.minimum(1.0, (step + 1) / max(optim.warmup_steps, 1))
        if optim.schedule == "constant":
            return optim.learning_rate * warmup
        progress = (step - optim.warmup_steps) / max(total_steps - optim.warmup_steps, 1)
        return optim.learning_rate * warmup * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))

    return rate


def kernel_mask(params: PyTree) -> PyTree:
    """Mark True the leaves that weight decay and Muon act on: those whose own name is `kernel`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).split("/")[-1] == "kernel", params)


def _rows(kernel: Array) -> tuple[int, ...]:
    """Return the axes that make up fan_in, in [..., in, out] and in a convolution's [height, width, in, out]."""
    return (0, 1, 2) if kernel.ndim == 4 else (kernel.ndim - 2,)


def _matrices(kernels: PyTree) -> PyTree:
    return jax.tree.map(lambda kernel: MuonDimensionNumbers(_rows(kernel), (kernel.ndim - 1,)), kernels)


def _scale_by_shape(updates: PyTree, _: PyTree) -> PyTree:
    """Return the factor of equation (5)."""

    def scale(update):
        fan_in = math.prod(update.shape[axis] for axis in _rows(update))
        return 0.2 * math.sqrt(max(fan_in, update.shape[-1])) * update

    return jax.tree.map(scale, updates)


def make_transform(optim: OptimConfig) -> optax.GradientTransformation:
    """Return the transform of equation (2). The step itself applies the rate, by its own count, which skipped steps do
    not delay."""
    direction = quantize_moments(optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2, eps=optim.eps), optim.moments)
    if optim.optimizer == "adafactor":
        direction = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    if optim.optimizer == "muon":
        muon = optax.chain(
            quantize_moments(
                scale_by_muon(beta=optim.beta1, eps=optim.eps, weight_dimension_numbers=_matrices), optim.moments
            ),
            optax.stateless(_scale_by_shape),
        )
        direction = optax.partition(
            {"muon": muon, "adam": optax.chain(direction, optax.scale(optim.adam_rate))},
            lambda params: jax.tree.map(lambda is_kernel: "muon" if is_kernel else "adam", kernel_mask(params)),
        )
    return optax.chain(direction, optax.add_decayed_weights(optim.weight_decay, mask=kernel_mask))


def clip(grads: PyTree, norm: Float[Array, ""], optim: OptimConfig) -> PyTree:
    """Clip by equation (1); `norm` is the global norm of `grads`."""
    if optim.clip_norm is None:
        return grads
    scale = jnp.minimum(1.0, optim.clip_norm / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, grads)


def update_ema(ema: PyTree, params: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """Update by equation (4); `step` counts the steps before this one. The average of what does not change is exact."""
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: jnp.where(p == e, e, d * e + (1 - d) * p), ema, params)
