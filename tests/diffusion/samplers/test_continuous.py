"""Samplers on EDM and flows, against what they do to Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.linear_gaussian import COVARIANCE, DIM, MEAN, continuous_model, recovered_map
from unclip_jax.diffusion import (
    DDIM,
    DPMSolver,
    EDMSpec,
    FlowSpec,
    Guidance,
    Heun,
    KeyNoise,
    TapeNoise,
    Threshold,
    sample,
)
from unclip_jax.diffusion.samplers.repaint import Resampling, _noising, repaint

PROCESSES = {"edm": EDMSpec().build(), "flow": FlowSpec(shift=2.0).build()}
SAMPLERS = {
    "ddim": lambda n: DDIM(steps=n),
    "eta": lambda n: DDIM(steps=n, eta=0.5),
    "ancestral": lambda n: DDIM(steps=n, eta=1.0),
    "dpm++": lambda n: DPMSolver(steps=n),
    "sde_dpm++": lambda n: DPMSolver(steps=n, kind="sde"),
    "heun": lambda n: Heun(steps=n),
}
every_process = pytest.mark.parametrize("kind", PROCESSES)
VALUES, VECTORS = np.linalg.eigh(COVARIANCE)


def variance(process, sampler):
    """Of what the sampler draws in each eigendirection of the data, by its table in float64."""
    rows = process.respace(sampler.steps)
    table, evaluated = sampler.coefficients(rows), sampler.evaluated
    # A state is linear in (x_T, z_1, ...): these are its coefficients, for each eigenvalue.
    x = np.zeros((1 + sampler.evaluations, DIM))
    x[0] = rows.initial_scale
    kept = np.zeros_like(x)
    for i, k in enumerate(reversed(range(sampler.evaluations))):
        a, s = rows.signal[evaluated[k]], rows.sigma[evaluated[k]]
        row = {name: column[k] for name, column in table.items()}
        x_0 = a * VALUES / (a**2 * VALUES + s**2) * x
        held = row.get("last_x_0", 0) + row.get("last_x", 0)
        following = row["x_0"] * x_0 + row["x_t"] * x + held * kept
        following[1 + i] += row.get("noise", 0)
        kept = x if isinstance(sampler, Heun) else x_0
        x = following
    return (x**2).sum(0)


def worst(process, sampler):
    return abs(np.sqrt(variance(process, sampler) / VALUES) - 1).max()


@every_process
@pytest.mark.parametrize("name", SAMPLERS)
def test_applies_its_table(kind, name):
    """The loop and the update in float32, against the table in float64, and so the moments of the data."""
    process, sampler = PROCESSES[kind], SAMPLERS[name](12)
    found = recovered_map(process, sampler)
    expected = VECTORS * variance(process, sampler) @ VECTORS.T
    # Twelve steps on numbers that begin at initial_scale and are known to 2^-24 of it; steps shrink what is there, so
    # the errors of few of them last. A network of EDM is also told its sigma to 5e-7, of which it makes x_0.
    atol = 12 * 2.0**-24 * max(1.0, process.initial_scale) * 2
    np.testing.assert_allclose(found.covariance, expected, atol=atol)
    assert abs(np.diag(COVARIANCE)).min() > 1e3 * atol


@every_process
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm++", 2), ("sde_dpm++", 1), ("ancestral", 1)])
def test_variance_converges_at_its_order(kind, name, order):
    # The log SNR of a flow's rows is far from even, and its second order shows late.
    counts = {"edm": (32, 64, 128), "flow": (256, 512, 1024)}[kind]
    errors = [worst(PROCESSES[kind], SAMPLERS[name](n)) for n in counts]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (rates > order - 0.4).all(), errors
    if name == "dpm++":
        assert errors[-1] < worst(PROCESSES[kind], SAMPLERS["ddim"](counts[-1])) / 5


@every_process
def test_euler_is_ddim(kind):
    """In the terms of the EDM paper, x + (s' - s) (x - x_0) / s, and of a flow, x + (t' - t) (eps - x_0)."""
    rows = PROCESSES[kind].respace(9)
    table = DDIM(steps=9).coefficients(rows)
    x, x_0 = np.random.default_rng(0).normal(size=(2, 9))
    s, s_prev = rows.sigma, np.append(0, rows.sigma[:-1])
    slope = (x - x_0) / s
    np.testing.assert_allclose(table["x_0"] * x_0 + table["x_t"] * x, x + (s_prev - s) * slope, rtol=1e-9, atol=1e-12)
    # (x - x_0) / t is a flow's velocity eps - x_0, with eps = (x - (1 - t) x_0) / t.
    np.testing.assert_allclose((x - (1 - s) * x_0) / s - x_0, slope, rtol=1e-9, atol=1e-9)
    assert not table["noise"].any()


@every_process
def test_samples_are_of_the_data(kind):
    process, count = PROCESSES[kind], 4096
    noise = KeyNoise(key=jax.random.key(0), indices=jnp.arange(count))

    @jax.jit
    def run(noise):
        free = Threshold(kind="none")
        return sample(process, continuous_model(process), None, Heun(steps=24), noise, shape=(count, 3), threshold=free)

    x_0 = np.asarray(run(noise), np.float64)
    # Four deviations of a mean, and of a covariance, over 4096 draws, and the bias of 24 steps (3e-2 of a deviation).
    np.testing.assert_allclose(x_0.mean(0), MEAN, atol=4 * np.sqrt(0.5 / count) + 0.01)
    np.testing.assert_allclose(np.cov(x_0.T), COVARIANCE, atol=4 * 0.5 * np.sqrt(2 / count) + 0.02)


@every_process
def test_starts_from_noise_of_the_process_or_from_a_given_x_T(kind):
    process, z = PROCESSES[kind], jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    tape = TapeNoise(x_T=z, steps=jnp.zeros((0, 2, 3)))

    def zero(x, time, cond):
        return 0 * x

    def run(**settings):
        _, seen = sample(process, zero, None, DDIM(steps=3), tape, shape=(2, 3), trajectory=True, **settings)
        return seen.x_t[0]

    np.testing.assert_array_equal(run(), jnp.float32({"edm": 80.0, "flow": 1.0}[kind]) * z)
    np.testing.assert_array_equal(run(x_T=2 * z), 2 * z)


@every_process
def test_renoising_keeps_the_variance_of_the_data(kind):
    evaluated, after = Resampling(jump=4, times=3).rows(20)
    rows = PROCESSES[kind].respace(20)
    columns = _noising(rows, evaluated, after)
    signal, sigma = np.append(rows.signal, 1.0), np.append(rows.sigma, 0.0)
    assert (columns["kept"][after == evaluated - 1] == 1).all() and not columns["added"][after == evaluated - 1].any()
    for v in (0.25, 1.0, 4.0):
        before, later = (signal[k] ** 2 * v + sigma[k] ** 2 for k in (evaluated - 1, after))
        np.testing.assert_allclose(columns["kept"] ** 2 * before + columns["added"] ** 2, later, rtol=1e-12)


@every_process
def test_repaint_keeps_the_known_and_bounds_the_rest(kind):
    process = PROCESSES[kind]
    noise, known = KeyNoise(key=jax.random.key(0), indices=jnp.arange(3)), jnp.full((3, 4), 0.7)
    is_known = jnp.array([[True, True, False, False]])

    @jax.jit
    def run(noise):
        options = {"known": known, "is_known": is_known, "resampling": Resampling(jump=2, times=2)}
        return repaint(process, lambda x, time, cond: jnp.tanh(x), None, DDIM(steps=5, eta=1.0), noise, **options)

    x_0 = np.asarray(run(noise))
    np.testing.assert_array_equal(x_0[:, :2], np.float32(0.7))
    assert np.isfinite(x_0).all() and abs(x_0).max() <= 1
    for sampler in (Heun(steps=5), DPMSolver(steps=5)):
        with pytest.raises(ValueError, match=f"single steps, DDPM or DDIM; got {type(sampler).__name__}"):
            repaint(process, lambda x, time, cond: x, None, sampler, noise, known=known, is_known=is_known)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cond:
    shift: jax.Array

    def null(self):
        return Cond(jnp.zeros_like(self.shift))


@every_process
def test_guidance_interval_is_in_units_of_time(kind):
    rows = PROCESSES[kind].respace(4)
    lowest, highest = (float(np.float32(time)) for time in rows.time[[1, 2]])
    guidance = Guidance(scale=3.0, interval=(lowest, highest))
    guided = guidance.wrap(rows, lambda x, time, cond: cond.shift + 0 * x)
    found = guided(jnp.zeros((4, 1)), rows.time_of(jnp.arange(4)), Cond(jnp.ones((4, 1))))
    np.testing.assert_array_equal(found[:, 0], [1, 3, 3, 1])
