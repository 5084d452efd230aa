"""Data whose optimal denoiser is known, and what samplers must do with it, in float64.

(1)  x_0 ~ N(mu, C);  E[x_0 | x_t] = mu + sqrt(a) C (a C + (1 - a) I)^-1 (x_t - sqrt(a) mu),  a = alpha_bar
(2)  every update is affine, x_prev = M x_t + c + s z, so x_0 = P x_T + q + sum_i R_i z_i,
     which is N(q, P P' + sum_i R_i R_i')
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import Process, Sampler, TapeNoise, Threshold, sample

MEAN = np.array([0.5, -0.3, 0.2])
COVARIANCE = np.array([[0.5, 0.2, -0.1], [0.2, 0.3, 0.05], [-0.1, 0.05, 0.4]])
DIM = 3


@dataclasses.dataclass
class AffineMap:
    """x_0 = P x_T + q + sum_i R_i z_i; R is [S d d]."""

    P: np.ndarray
    q: np.ndarray
    R: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        return self.P @ self.P.T + np.einsum("sij,skj->ik", self.R, self.R)

    def moment_error(self) -> float:
        return max(abs(self.q - MEAN).max(), abs(self.covariance - COVARIANCE).max())

    def difference(self, other: "AffineMap") -> float:
        return max(abs(a - b).max() for a, b in ((self.P, other.P), (self.q, other.q), (self.R, other.R)))


def optimal_x0(a: float) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 1 as (matrix, offset)."""
    gain = np.sqrt(a) * COVARIANCE @ np.linalg.inv(a * COVARIANCE + (1 - a) * np.eye(DIM))
    return gain, MEAN - np.sqrt(a) * gain @ MEAN


def optimal_model(process: Process, variance_channel: float = 0.0) -> Callable:
    """A ModelFn that outputs eq. 1 in the process's own prediction space; its variance channels are constant."""
    matrices, offsets = [], []
    for a in process.schedule.alpha_bar:
        gain, offset = optimal_x0(a)
        eps = (np.eye(DIM) - np.sqrt(a) * gain) / np.sqrt(1 - a), -np.sqrt(a) * offset / np.sqrt(1 - a)
        v = np.sqrt(a) * eps[0] - np.sqrt(1 - a) * gain, np.sqrt(a) * eps[1] - np.sqrt(1 - a) * offset
        matrix, shift = {"x0": (gain, offset), "eps": eps, "v": v}[process.prediction]
        matrices.append(matrix)
        offsets.append(shift)
    matrices, offsets = np.array(matrices, np.float32), np.array(offsets, np.float32)

    def model_fn(x_t, t, cond):
        del cond
        prediction = jnp.einsum("bij,bj->bi", jnp.asarray(matrices)[t], x_t) + jnp.asarray(offsets)[t]
        if process.variance != "learned_range":
            return prediction
        return jnp.concatenate([prediction, jnp.full_like(prediction, variance_channel)], axis=-1)

    return model_fn


def exact_map(alpha_bar: np.ndarray, update: Callable) -> AffineMap:
    """Eq. 2 from update(a, a_prev) -> (coefficients of x_0, of x_t, noise scale); lowest noise first."""
    total, shift, noises = np.eye(DIM), np.zeros(DIM), []
    for a, a_prev in list(zip(alpha_bar, np.append(1.0, alpha_bar[:-1]), strict=True))[::-1]:
        gain, offset = optimal_x0(a)
        on_x_0, on_x_t, scale = update(a, a_prev)
        matrix = on_x_0 * gain + on_x_t * np.eye(DIM)
        total, shift = matrix @ total, matrix @ shift + on_x_0 * offset
        noises = [matrix @ noise for noise in noises] + [scale * np.eye(DIM)]
    return AffineMap(total, shift, np.array(noises))


def recovered_map(process: Process, sampler: Sampler, variance_channel: float = 0.0) -> AffineMap:
    """The map that the sampler really applies, read off by feeding it the origin and the basis vectors."""
    basis = np.eye(DIM * (sampler.steps + 1), dtype=np.float32).reshape(-1, sampler.steps + 1, DIM)
    inputs = np.concatenate([np.zeros_like(basis[:1]), basis]).swapaxes(0, 1)
    tape = TapeNoise(x_T=jnp.asarray(inputs[0]), steps=jnp.asarray(inputs[1:]))
    model_fn = optimal_model(process, variance_channel)

    @jax.jit
    def run(tape):
        shape = tape.x_T.shape
        return sample(process, model_fn, None, sampler, tape, shape=shape, threshold=Threshold(kind="none"))

    outputs = np.asarray(run(tape), np.float64)
    columns = (outputs[1:] - outputs[0]).reshape(sampler.steps + 1, DIM, DIM).swapaxes(1, 2)
    return AffineMap(columns[0], outputs[0], columns[1:])
