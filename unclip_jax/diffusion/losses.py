"""Training losses of a diffusion network.

With p the prediction, y its target and mean(.) over everything but the batch,

(1)  L_simple = mean((p - y)^2)                                  (DDPM, arXiv 2006.11239, eq. 14)
(2)  L = w_t L_simple + lambda L_vlb,  L_vlb = T L_t             (improved DDPM, arXiv 2102.09672, eq. 16)
(3)  L_t = mean(KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))) / log 2 for t > 0,
     L_0 = -mean(log p(x_0 | x_1)) / log 2

w_t is the weight of the process: eq. 5 of `gaussian` for a variance-preserving one, 1 for EDM and flows.
The bound, in bits per dimension, is the sum over t of L_t plus a constant. T L_t estimates that sum without
bias when t is uniform. With the paper's lambda = 0.001 the second term of (2) is L_t T / 1000, which is how
ADM's code rescales it: the two are the same loss.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PyTree

from unclip_jax.diffusion.gaussian import VariancePreserving, require_vp
from unclip_jax.diffusion.process import ModelFn, Process, Weighting

# Improved DDPM's floor, below which a bin's probability carries no gradient.
MIN_BIN_PROBABILITY = 1e-12


def loss(
    process: Process,
    model_fn: ModelFn,
    x_0: Float[Array, " b *dims"],
    t: Num[Array, " b"],
    noise: Float[Array, " b *dims"],
    cond: PyTree,
    *,
    weighting: Weighting = "none",
    vlb_weight: float = 0.001,
) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """Return eq. 2 per example. Its second term exists only where the process learns its variance range, and trains
    that alone: the mean in L_t is detached.

    Args:
        x_0: data; in [-1, 1] if the range is learned, since L_0 integrates over 256 bins of that interval.
        t: noise levels as `Process.random_time` draws them; for eq. 3 uniform rows, in [0, T).
        noise: the eps that makes x_t.
        cond: given to `model_fn` as it is.
        weighting: which w_t; "none" is 1.
        vlb_weight: lambda.

    Raises:
        ValueError: the process has no such weighting.

    Returns:
        The loss, and the metrics "mse" (eq. 1, unweighted) and, with a learned range, "vlb" (T L_t, in bits
        per dimension).
    """
    x_t = process.q_sample(x_0, t, noise)
    prediction, variance_channels = process.split(model_fn(*process.network_inputs(x_t, t), cond))
    mse = _mean(jnp.square(prediction - process.target(x_0, noise, t)))
    total, metrics = process.loss_weight(t, weighting) * mse, {"mse": mse}
    if variance_channels is not None:
        process = require_vp(process, "a learned range")
        log_variance = process.log_variance(variance_channels, t)
        detached = jax.lax.stop_gradient(prediction)
        vlb = process.num_steps * vlb_term(process, detached, log_variance, x_0, x_t, t)
        total, metrics["vlb"] = total + vlb_weight * vlb, vlb
    return total, metrics


def first_guess(
    process: Process, model_fn: ModelFn, noise: Float[Array, " b *dims"], cond: PyTree
) -> Float[Array, " b *dims"]:
    """Return the network's x_0 at the noisiest row, of noise alone: what it knows from its condition."""
    last = process.respace(1)
    t, x_t = jnp.zeros(len(noise), jnp.int32), last.initial_scale * noise
    prediction, _ = last.split(model_fn(*last.network_inputs(x_t, t), cond))
    return last.to_x0(prediction, x_t, t)


def vlb_term(
    process: VariancePreserving,
    prediction: Float[Array, " b *dims"],
    log_variance: Float[Array, " b *dims"],
    x_0: Float[Array, " b *dims"],
    x_t: Float[Array, " b *dims"],
    t: Int[Array, " b"],
) -> Float[Array, " b"]:
    """Return L_t of eq. 3, in bits per dimension."""
    predicted_x_0 = process.to_x0(prediction, x_t, t)
    true = process.posterior(x_0, x_t, t)
    mean = process.posterior(predicted_x_0, x_t, t).mean
    kl = 0.5 * (
        log_variance
        - true.log_variance
        + jnp.exp(true.log_variance - log_variance)
        + jnp.square(true.mean - mean) * jnp.exp(-log_variance)
        - 1
    )
    nll = -discretised_log_likelihood(x_0, mean, log_variance)
    return jnp.where(t == 0, _mean(nll), _mean(kl)) / math.log(2)


def discretised_log_likelihood(
    x: Float[Array, " b *dims"], mean: Float[Array, " b *dims"], log_variance: Float[Array, " b *dims"]
) -> Float[Array, " b *dims"]:
    """Return the log probability of x's 8-bit bin in [-1, 1]; the outer two bins reach to infinity (DDPM, eq. 13)."""

    def below(distance: Array) -> Array:
        return jax.scipy.special.ndtr(jnp.exp(-0.5 * log_variance) * distance)

    offset, half_bin = x - mean, 1 / 255
    # An inner bin is as likely on either side of the mean; in the lower tail the difference keeps its digits.
    inner = below(half_bin - jnp.abs(offset)) - below(-half_bin - jnp.abs(offset))
    outer = below(half_bin - jnp.sign(x) * offset)
    return jnp.log(jnp.maximum(jnp.where(jnp.abs(x) > 0.999, outer, inner), MIN_BIN_PROBABILITY))


def _mean(x: Float[Array, " b *dims"]) -> Float[Array, " b"]:
    return x.mean(axis=tuple(range(1, x.ndim)))
