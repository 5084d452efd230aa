"""AdamW as the paper runs it (table 3), and the moving average of the parameters (EMA).

    g     <- g * min(1, clip_norm / |g|)                                                      (1)
    u     <- adam(g) + weight_decay * theta            (kernels only)                         (2)
    theta <- theta - learning_rate(step) * u                                                  (3)
    ema   <- d * ema + (1 - d) * theta,  d = min(ema_decay, (1 + step) / (10 + step))         (4)

The warm-up of d keeps the first, random parameters out of the average.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from unclip_jax.parallel.rules import path_name
from unclip_jax.training.config import OptimConfig


def learning_rate(optim: OptimConfig, total_steps: int) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """The rate of step 0, 1, ...: a linear warm-up that starts above 0, then constant or a cosine to 0."""

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        warmup = jnp.minimum(1.0, (step + 1) / max(optim.warmup_steps, 1))
        if optim.schedule == "constant":
            return optim.learning_rate * warmup
        progress = (step - optim.warmup_steps) / max(total_steps - optim.warmup_steps, 1)
        return optim.learning_rate * warmup * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))

    return rate


def decay_mask(params: PyTree) -> PyTree:
    """True for the leaves that weight decay acts on: those whose own name is `kernel`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).split("/")[-1] == "kernel", params)


def make_transform(optim: OptimConfig) -> optax.GradientTransformation:
    """Equation (2). The step itself applies the rate, by its own count, which skipped steps do not delay."""
    return optax.chain(
        optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2, eps=optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask=decay_mask),
    )


def clip(grads: PyTree, norm: Float[Array, ""], optim: OptimConfig) -> PyTree:
    """Equation (1); `norm` is the global norm of `grads`."""
    if optim.clip_norm is None:
        return grads
    scale = jnp.minimum(1.0, optim.clip_norm / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, grads)


def update_ema(ema: PyTree, params: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """Equation (4); `step` counts the steps before this one."""
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
