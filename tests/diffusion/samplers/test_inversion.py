import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.linear_gaussian import COVARIANCE, MEAN, exact_map, optimal_model
from tests.diffusion.samplers.test_ddim import implicit
from tests.diffusion.samplers.test_loop import Shift
from tests.helpers import count_traces
from unclip_jax.diffusion import DDIM, Guidance, ProcessSpec, TapeNoise, Threshold, invert, sample

NO_THRESHOLD = Threshold(kind="none")


def data(count=32):
    return jnp.asarray(np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, count), jnp.float32)


def there(process, model_fn, steps, corrections, x_0, cond=None, threshold=NO_THRESHOLD):
    run = functools.partial(invert, process, model_fn, corrections=corrections, threshold=threshold)
    return jax.jit(lambda x_0, cond: run(cond, DDIM(steps=steps), x_0))(x_0, cond)


def back(process, model_fn, steps, x_T, cond=None, threshold=NO_THRESHOLD):
    noise = TapeNoise(x_T=x_T, steps=jnp.zeros((0, *x_T.shape)))
    run = functools.partial(sample, process, model_fn, shape=x_T.shape, threshold=threshold)
    return jax.jit(lambda noise, cond: run(cond, DDIM(steps=steps), noise))(noise, cond)


def error(process, model_fn, steps, corrections, x_0=None, **settings):
    x_0 = data() if x_0 is None else x_0
    x_T = there(process, model_fn, steps, corrections, x_0, **settings)
    return float(abs(back(process, model_fn, steps, x_T, **settings) - x_0).max())


@pytest.mark.parametrize(("schedule", "prediction"), [("cosine", "eps"), ("linear", "v"), ("sigmoid", "x0")])
def test_ddim_returns_to_the_start(schedule, prediction):
    process = ProcessSpec(schedule=schedule, prediction=prediction).build()
    model_fn = optimal_model(process)
    plain, once, often = (error(process, model_fn, 25, corrections) for corrections in (0, 1, 8))
    assert often < 1e-5 < once < 0.15 * plain


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_explicit_one_converges_at_first_order(prediction):
    process = ProcessSpec(schedule="linear", prediction=prediction).build()
    errors = [error(process, optimal_model(process), steps, 0) for steps in (50, 100, 200)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (abs(rates - 1) < 0.2).all(), errors


def test_finds_what_the_exact_map_comes_from():
    process = ProcessSpec(schedule="linear", prediction="v").build()
    exact = exact_map(process.schedule.respace(30).alpha_bar, implicit(0.0))
    expected = np.linalg.solve(exact.P, (data() - exact.q).T).T
    np.testing.assert_allclose(there(process, optimal_model(process), 30, 10, data()), expected, atol=2e-5)


def test_a_network_of_constant_eps_is_followed_exactly():
    process = ProcessSpec(schedule="linear", num_steps=100).build()
    x_0, eps = data(), data()[::-1]
    for corrections in (0, 3):
        x_T = there(process, lambda x_t, t, cond: eps, 10, corrections, x_0)
        np.testing.assert_allclose(x_T, process.q_sample(x_0, jnp.full(len(x_0), 99), eps), atol=1e-5)


def test_with_guidance_a_learned_variance_and_a_network_that_is_not_linear():
    process = ProcessSpec(prediction="v", variance="learned_range").build()

    def model_fn(x_t, t, cond):
        assert x_t.dtype == jnp.float32 and t.dtype == jnp.float32 and t.shape == (2 * 32,)
        return jnp.concatenate([jnp.tanh(x_t + cond.shift + t[:, None] / 1000), x_t], axis=-1)

    cond = Shift(jnp.linspace(-1, 1, 32)[:, None])
    guided, traces = count_traces(Guidance(scale=2.0).wrap(process, model_fn))
    assert error(process, guided, 30, 0, cond=cond) > 0.01
    traces.clear()
    there(process, guided, 30, 12, data(), cond)
    assert len(traces) == 1
    assert error(process, guided, 30, 12, cond=cond) < 1e-5


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_to_noise_alone(prediction):
    process = ProcessSpec(schedule="linear", prediction=prediction, zero_terminal_snr=True).build()
    assert error(process, optimal_model(process), 20, 10) < 1e-5


@pytest.mark.parametrize("spacing", ["leading", "trailing", "karras"])
def test_in_any_spacing(spacing):
    process = ProcessSpec(schedule="linear", prediction="v").build().respace(20, spacing)
    assert error(process, lambda x_t, t, cond: jnp.sin(x_t + t[:, None] / 1000), 20, 20) < 1e-5


def test_thresholds_must_agree():
    process = ProcessSpec(prediction="v").build()
    model_fn, threshold = optimal_model(process), Threshold(limit=0.8)
    x_0 = jnp.clip(data(), -0.8, 0.8)
    assert (abs(x_0) == np.float32(0.8)).any()
    assert error(process, model_fn, 30, 20, x_0, threshold=threshold) < 3e-4
    x_T = there(process, model_fn, 30, 20, x_0)
    assert abs(back(process, model_fn, 30, x_T, threshold=threshold) - x_0).max() > 0.02


def test_what_cannot_be_inverted():
    process = ProcessSpec(schedule="linear", num_steps=10).build()
    for ddim, corrections, line in (
        (DDIM(steps=5, eta=0.1), 0, "eta = 0 alone; got 0.1"),
        (DDIM(steps=1), 0, "at least 2 steps; got 1"),
        (DDIM(steps=11), 0, "steps must be at most the schedule's 10"),
        (DDIM(steps=5), -1, "corrections must be at least 0; got -1"),
    ):
        with pytest.raises(ValueError, match=line):
            invert(process, optimal_model(process), None, ddim, data(), corrections=corrections)
