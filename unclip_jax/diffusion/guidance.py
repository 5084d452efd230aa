"""Classifier-free guidance, and thresholding of the predicted x_0.

(1)  g = u + s (c - u), the unconditional and conditional predictions (Ho and Salimans, arXiv 2207.12598)
(2)  g' = phi g std(c) / std(g) + (1 - phi) g, std per example (Lin et al., arXiv 2305.08891, eq. 15-16)
(3)  x_0' = clip(x_0, -m, m) l / m, with m = l if static, and m = max(l, quantile(|x_0|)) per example if
     dynamic (Imagen, arXiv 2205.11487, sec. 2.3)

Eq. 1 and 2 act on the network's own prediction, whatever the process says that it is; eq. 3 acts on x_0, in the
sampling loop.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from unclip_jax.diffusion.process import ModelFn, Process, expand


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly a prediction is pushed towards its condition.

    Attributes:
        scale: s of eq. 1; 1 is the conditional model itself, at no extra cost.
        rescale: phi of eq. 2, in [0, 1].
        interval: times (lowest, highest), both included, outside which s = 1, in the units that networks are
            conditioned on; None for all.
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[int | float, int | float] | None = None

    def __post_init__(self):
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance rescale must lie between 0 and 1; got {self.rescale}")
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"guidance interval must be (lowest, highest); got {self.interval}")

    def wrap(self, process: Process, model_fn: ModelFn) -> ModelFn:
        """Return a ModelFn that runs [unconditional, conditional] as one batch and returns eq. 1 and 2 in float32.

        `cond.null()` must be the unconditional twin of `cond`, leaf for leaf. Learned variance channels come
        from the conditional half, unguided.
        """
        if self.scale == 1:
            return model_fn

        def guided_fn(x_t: Array, time: Array, cond: PyTree) -> Array:
            if not hasattr(cond, "null"):
                raise ValueError("guidance needs a cond with a null() method, its unconditional twin")
            both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), cond.null(), cond)
            output = model_fn(jnp.concatenate([x_t, x_t]), jnp.concatenate([time, time]), both)
            prediction, variance_channels = process.split(output)
            unconditional, conditional = jnp.split(prediction, 2)
            result = self._combine(unconditional, conditional, time)
            if variance_channels is None:
                return result
            return jnp.concatenate([result, jnp.split(variance_channels, 2)[1]], axis=-1)

        return guided_fn

    def _combine(self, unconditional: Array, conditional: Array, time: Array) -> Array:
        guided = unconditional + self.scale * (conditional - unconditional)
        if self.rescale:
            ratio = _std(conditional) / jnp.maximum(_std(guided), jnp.finfo(jnp.float32).tiny)
            guided = self.rescale * ratio * guided + (1 - self.rescale) * guided
        if self.interval is None:
            return guided
        lowest, highest = self.interval
        inside = expand((time >= lowest) & (time <= highest), guided.ndim)
        return jnp.where(inside, guided, conditional)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """How the predicted x_0 is kept in the range of the data (eq. 3).

    Attributes:
        kind: "none" leaves x_0 as it is.
        limit: l, the largest magnitude in the data; 1 for images.
        percentile: which quantile of |x_0|, in (0, 1], for "dynamic".
    """

    kind: Literal["none", "static", "dynamic"] = "static"
    limit: float = 1.0
    percentile: float = 0.995

    def __post_init__(self):
        if self.kind not in ("none", "static", "dynamic"):
            raise ValueError(f"threshold kind must be one of none, static, dynamic; got {self.kind!r}")
        if not self.limit > 0:
            raise ValueError(f"threshold limit must be positive; got {self.limit}")
        if not 0 < self.percentile <= 1:
            raise ValueError(f"threshold percentile must lie in (0, 1]; got {self.percentile}")

    def apply(self, x_0: Float[Array, " b *dims"]) -> Float[Array, " b *dims"]:
        """Return x_0 by eq. 3."""
        match self.kind:
            case "none":
                return x_0
            case "static":
                return jnp.clip(x_0, -self.limit, self.limit)
            case "dynamic":
                axes = tuple(range(1, x_0.ndim))
                magnitude = jnp.quantile(jnp.abs(x_0), self.percentile, axis=axes, keepdims=True)
                bound = jnp.maximum(magnitude, self.limit)
                return jnp.clip(x_0, -bound, bound) * (self.limit / bound)


UNIT_THRESHOLD = Threshold()


def _std(x: Array) -> Array:
    return x.std(axis=tuple(range(1, x.ndim)), keepdims=True)
