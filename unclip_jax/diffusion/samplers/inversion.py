"""DDIM backwards: the x_T from which `DDIM` with eta = 0 draws a given x_0.

With cos phi = sqrt(alpha_bar), phi = 0 at the data, delta = phi - phi_prev, and v(x_t) what the thresholded x_0 of x_t
implies there, a step of DDIM is a rotation,

(1)  x_prev = DDIM(x_t) = cos(delta) x_t - sin(delta) v(x_t)

to be solved for x_t, from the data upwards through the rows that DDIM comes down by. The lowest row leads to the data
itself: there eq. 1 says that x_0(x_t) is the data, or x_t = sqrt(alpha_bar) data + sqrt(1 - alpha_bar) eps(x_t). It is
solved by a guess and as many corrections as are asked for:

(2)  x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, with the x_0 and eps that the network's output for x_prev at t
     implies at alpha_bar_prev; of an x_0, which implies no eps where alpha_bar_prev is 1, with those of its v at t
(3)  x_t <- x_t + (x_prev - DDIM(x_t)) / cos(delta)

Eq. 2 alone is the usual explicit inversion (diffusers' `DDIMInverseScheduler`). Its error falls like 1 / steps, down to
that of the lowest row. Eq. 3 comes to rest where DDIM gives x_prev back exactly. Each time its error is multiplied by
tan(delta) dv/dx: by little where steps are small, and by 0 for data of unit variance, whose v does not depend on x_t.
(x_prev - row.x_0 x_0(x_t)) / row.x_t has the same fixed points, but none in the lowest row, where row.x_t is 0, and
in the rows above, where sigma more than doubles, it runs away from them.

What a threshold clips is lost to eq. 1: use none, and none for the DDIM that follows, or the same one for both.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from unclip_jax.diffusion.gaussian import require_vp
from unclip_jax.diffusion.guidance import Threshold
from unclip_jax.diffusion.process import ModelFn, Process, below
from unclip_jax.diffusion.samplers.ddim import DDIM
from unclip_jax.diffusion.samplers.sampler import Denoised

NO_THRESHOLD = Threshold(kind="none")


def invert(
    process: Process,
    model_fn: ModelFn,
    cond: PyTree,
    ddim: DDIM,
    x_0: Float[Array, " b *dims"],
    *,
    corrections: int = 0,
    threshold: Threshold = NO_THRESHOLD,
) -> Float[Array, " b *dims"]:
    """Return x_T, so that `sample(process, model_fn, cond, ddim, noise, x_T=x_T, threshold=threshold)` is x_0. Pure.

    Args:
        process: as for `sample`: respaced to DDIM's steps evenly, or given respaced.
        model_fn: as for `sample`; guided, too, if DDIM is to be.
        ddim: with eta = 0 and at least 2 steps.
        corrections: how often eq. 3 is applied in each step; steps * (1 + corrections) network evaluations in all.

    Raises:
        ValueError: the process is not variance preserving, `ddim` cannot be inverted or has more steps than the
            process, or corrections is negative.
    """
    if ddim.eta:
        raise ValueError(f"DDIM is inverted with eta = 0 alone; got {ddim.eta}")
    if ddim.steps < 2:
        raise ValueError("DDIM is inverted with at least 2 steps; got 1")
    if corrections < 0:
        raise ValueError(f"corrections must be at least 0; got {corrections}")
    process = require_vp(process, "DDIM's inversion").respace(ddim.steps)

    def step(x_prev: Array, scanned):
        row_number, row = scanned
        t = jnp.broadcast_to(row_number, x_prev.shape[:1])

        def guess(prediction: Array) -> Array:
            if process.prediction == "eps":
                eps = prediction
                guessed_x_0 = (x_prev - row["sigma_prev"] * eps) / row["signal_prev"]
            else:
                v = process.to_v(prediction, x_prev, t)
                eps = row["signal_prev"] * v + row["sigma_prev"] * x_prev
                guessed_x_0 = row["signal_prev"] * x_prev - row["sigma_prev"] * v
            return row["signal"] * threshold.apply(guessed_x_0) + row["sigma"] * eps

        def improve(i: Array, x_t: Array) -> Array:
            prediction, _ = process.split(model_fn(*process.network_inputs(x_t, t), cond))
            denoised = Denoised(threshold.apply(process.to_x0(prediction, x_t, t)), None)
            missed = x_prev - ddim.update(ddim.start(x_t), denoised, row, jnp.zeros_like(x_t)).x
            # One loop for both, so that the program holds the network once.
            return jnp.where(i == 0, guess(prediction), x_t + missed / row["cos_delta"])

        return jax.lax.fori_loop(0, 1 + corrections, improve, x_prev), None

    columns = {
        "signal": process.signal,
        "sigma": process.sigma,
        "signal_prev": below(process.signal, 1.0),
        "sigma_prev": below(process.sigma, 0.0),
    }
    columns["cos_delta"] = columns["signal"] * columns["signal_prev"] + columns["sigma"] * columns["sigma_prev"]
    table = {name: column.astype(np.float32) for name, column in (columns | ddim.coefficients(process)).items()}
    return jax.lax.scan(step, x_0.astype(jnp.float32), (np.arange(ddim.steps, dtype=np.int32), table))[0]
