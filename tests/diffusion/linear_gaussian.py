"""Data whose optimal denoiser is known, and what samplers must do with it, in float64.

With signal = sqrt(a) and sigma = sqrt(1 - a), or those of any other process,

(1)  x_0 ~ N(mu, C);  E[x_0 | x_t] = mu + sqrt(a) C (a C + (1 - a) I)^-1 (x_t - sqrt(a) mu),  a = alpha_bar
(2)  every update is affine, x_prev = M x_t + c + s z, so x_0 = P x_T + q + sum_i R_i z_i,
     which is N(q, P P' + sum_i R_i R_i')
(3)  the probability flow keeps (signal^2 C + sigma^2 I)^(-1/2) (x - signal mu)
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import EDM, Flow, Process, Sampler, TapeNoise, Threshold, VariancePreserving, sample

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


def optimal_model(process: VariancePreserving, variance_channel: float = 0.0) -> Callable:
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
        # The process is not respaced, so a training step is its row.
        row = t.astype(jnp.int32)
        prediction = jnp.einsum("bij,bj->bi", jnp.asarray(matrices)[row], x_t) + jnp.asarray(offsets)[row]
        if process.variance != "learned_range":
            return prediction
        return jnp.concatenate([prediction, jnp.full_like(prediction, variance_channel)], axis=-1)

    return model_fn


def continuous_model(process: EDM | Flow) -> Callable:
    """A ModelFn that outputs eq. 1 in the prediction space of a process in continuous time."""
    values, vectors = (jnp.asarray(each, jnp.float32) for each in np.linalg.eigh(COVARIANCE))
    mean = jnp.asarray(MEAN, jnp.float32)

    def model_fn(x, time, cond):
        del cond
        signal, sigma = (level[:, None] for level in process.levels_at(time))
        data = process.spec.sigma_data if isinstance(process, EDM) else 1.0
        norm = jnp.sqrt(sigma**2 + data**2)
        if isinstance(process, EDM):
            x = x * norm
        gain = signal * values / (signal**2 * values + sigma**2)
        x_0 = mean + (gain * ((x - signal * mean) @ vectors)) @ vectors.T
        if isinstance(process, Flow):
            return (x - x_0) / sigma
        return (x_0 - (data / norm) ** 2 * x) / (sigma * data / norm)

    return model_fn


def model_of(process: Process, variance_channel: float = 0.0) -> Callable:
    """`optimal_model` or `continuous_model`."""
    if isinstance(process, VariancePreserving):
        return optimal_model(process, variance_channel)
    return continuous_model(process)


def exact_flow(signal: float, sigma: float) -> AffineMap:
    """Where eq. 3 leads at the data, from x_T = signal x_0 + sigma eps."""
    values, vectors = np.linalg.eigh(COVARIANCE)
    P = vectors * np.sqrt(values / (signal**2 * values + sigma**2)) @ vectors.T
    return AffineMap(P, MEAN - P @ (signal * MEAN), np.zeros((1, DIM, DIM)))


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
    """The map of standard normal noise that the sampler really applies, read off by feeding it the origin and the basis
    vectors."""
    basis = np.eye(DIM * (sampler.evaluations + 1), dtype=np.float32).reshape(-1, sampler.evaluations + 1, DIM)
    inputs = np.concatenate([np.zeros_like(basis[:1]), basis]).swapaxes(0, 1)
    tape = TapeNoise(x_T=jnp.asarray(inputs[0]), steps=jnp.asarray(inputs[1:]))
    model_fn = model_of(process, variance_channel)

    @jax.jit
    def run(tape):
        shape = tape.x_T.shape
        return sample(process, model_fn, None, sampler, tape, shape=shape, threshold=Threshold(kind="none"))

    outputs = np.asarray(run(tape), np.float64)
    columns = (outputs[1:] - outputs[0]).reshape(sampler.evaluations + 1, DIM, DIM).swapaxes(1, 2)
    return AffineMap(columns[0], outputs[0], columns[1:])
