"""Training losses of a diffusion network.

With p the prediction, y its target and mean(.) over everything but the batch,

(1)  L_simple = mean((p - y)^2)                                  (DDPM, arXiv 2006.11239, eq. 14)
(2)  L = w_t L_simple + lambda L_vlb,  L_vlb = T L_t             (improved DDPM, arXiv 2102.09672, eq. 16)
(3)  L_t = mean(KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))) / log 2 for t > 0,
     L_0 = -mean(log p(x_0 | x_1)) / log 2
(4)  w_t = h c;  c = 1 for eps, SNR for x0, SNR / (SNR + 1) for v: h then weighs the error of eps in all three
     h = min(SNR, 5) / SNR   min-SNR                             (Hang et al., arXiv 2303.09556)
     h = 1 / (1 + SNR)       P2 with k = gamma = 1               (Choi et al., arXiv 2204.00227)

The bound, in bits per dimension, is the sum over t of L_t plus a constant. T L_t estimates that sum without
bias when t is uniform. With the paper's lambda = 0.001 the second term of (2) is L_t T / 1000, which is how
ADM's code rescales it: the two are the same loss.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from unclip_jax.diffusion.gaussian import Process, take
from unclip_jax.diffusion.guidance import ModelFn

Weighting = Literal["none", "min_snr", "p2"]
MIN_SNR_GAMMA = 5.0
# Improved DDPM's floor, below which a bin's probability carries no gradient.
MIN_BIN_PROBABILITY = 1e-12


def loss(
    process: Process,
    model_fn: ModelFn,
    x_0: Float[Array, " b *dims"],
    t: Int[Array, " b"],
    noise: Float[Array, " b *dims"],
    cond: PyTree,
    *,
    weighting: Weighting = "none",
    vlb_weight: float = 0.001,
) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """Eq. 2 per example. Its second term exists only where the process learns its variance range, and trains
    that alone: the mean in L_t is detached.

    Args:
        x_0: data; in [-1, 1] if the range is learned, since L_0 integrates over 256 bins of that interval.
        t: rows of the process's schedule, uniform in [0, T).
        noise: the eps that makes x_t.
        cond: given to `model_fn` as it is.
        weighting: h of eq. 4; "none" is w_t = 1.
        vlb_weight: lambda.

    Returns:
        The loss, and the metrics "mse" (eq. 1, unweighted) and, with a learned range, "vlb" (T L_t, in bits
        per dimension).
    """
    x_t = process.q_sample(x_0, t, noise)
    output = model_fn(x_t, jnp.asarray(process.schedule.timesteps, jnp.int32)[t], cond)
    prediction, variance_channels = process.split(output.astype(jnp.float32))
    mse = _mean(jnp.square(prediction - process.target(x_0, noise, t)))
    total, metrics = take(loss_weights(process, weighting), t, 1) * mse, {"mse": mse}
    if variance_channels is not None:
        log_variance = process.log_variance(variance_channels, t)
        detached = jax.lax.stop_gradient(prediction)
        vlb = process.schedule.num_steps * vlb_term(process, detached, log_variance, x_0, x_t, t)
        total, metrics["vlb"] = total + vlb_weight * vlb, vlb
    return total, metrics


def loss_weights(process: Process, weighting: Weighting) -> np.ndarray:
    """w_t of eq. 4 for every row, float64 [T]. Where the SNR is 0, h weighs an error of eps that is always 0: there
    w_t is 0 too, but for "none"."""
    snr = process.schedule.snr
    # c / SNR, which exists where the SNR is 0; a process of eps has no such row.
    relative = np.ones_like(snr) if process.prediction == "x0" else 1 / (snr + (process.prediction == "v"))
    match weighting:
        case "none":
            return np.ones_like(snr)
        case "min_snr":
            return np.minimum(snr, MIN_SNR_GAMMA) * relative
        case "p2":
            return snr / (1 + snr) * relative
        case _:
            raise ValueError(f"weighting must be one of none, min_snr, p2; got {weighting!r}")


def vlb_term(
    process: Process,
    prediction: Float[Array, " b *dims"],
    log_variance: Float[Array, " b *dims"],
    x_0: Float[Array, " b *dims"],
    x_t: Float[Array, " b *dims"],
    t: Int[Array, " b"],
) -> Float[Array, " b"]:
    """L_t of eq. 3, in bits per dimension."""
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
    """Log probability of x's 8-bit bin in [-1, 1]; the outer two bins reach to infinity (DDPM, eq. 13)."""

    def below(distance: Array) -> Array:
        return jax.scipy.special.ndtr(jnp.exp(-0.5 * log_variance) * distance)

    offset, half_bin = x - mean, 1 / 255
    # An inner bin is as likely on either side of the mean; in the lower tail the difference keeps its digits.
    inner = below(half_bin - jnp.abs(offset)) - below(-half_bin - jnp.abs(offset))
    outer = below(half_bin - jnp.sign(x) * offset)
    return jnp.log(jnp.maximum(jnp.where(jnp.abs(x) > 0.999, outer, inner), MIN_BIN_PROBABILITY))


def _mean(x: Float[Array, " b *dims"]) -> Float[Array, " b"]:
    return x.mean(axis=tuple(range(1, x.ndim)))
