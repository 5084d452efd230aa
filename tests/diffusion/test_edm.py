import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

from tests.diffusion.linear_gaussian import COVARIANCE, MEAN, continuous_model
from unclip_jax.core.config import from_json, to_json
from unclip_jax.diffusion import EDM, AnyProcessSpec, EDMSpec, FlowSpec, ProcessSpec, loss

PROCESS = EDMSpec(sigma_data=0.7).build()
SIGMAS = np.array([0.002, 0.05, 0.7, 5.0, 80.0])
TIMES = jnp.asarray(np.log(SIGMAS) / 4, jnp.float32)
# log(sigma) / 4 in float32 is off by 2^-25 relative at most, and sigma, its exponential, by 4 times that of a number
# up to 4.4, so by 5e-7; sums of two terms of that error are off by less than 2e-6 of the larger one.
RTOL = 2e-6


@dataclasses.dataclass(frozen=True)
class Holder:
    """A field that may hold any process."""

    process: AnyProcessSpec


def keys(count, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(SIGMAS), 3, 2)), rng.normal(size=(len(SIGMAS), 3, 2))


def float32(*values):
    return tuple(jnp.asarray(value, jnp.float32) for value in values)


def test_preconditioning_against_the_papers_table():
    x_0, noise = arrays()
    sigma, data = SIGMAS[:, None, None], 0.7
    x_t = x_0 + sigma * noise
    c_skip, c_in = data**2 / (sigma**2 + data**2), 1 / np.sqrt(sigma**2 + data**2)
    c_out = sigma * data / np.sqrt(sigma**2 + data**2)
    output = np.random.default_rng(1).normal(size=x_0.shape)
    given = (*float32(output, x_t), TIMES)
    denoised = c_skip * x_t + c_out * output
    scale = abs(c_skip * x_t) + abs(c_out * output)
    assert (abs(PROCESS.to_x0(*given) - denoised) <= RTOL * scale).all()
    # eps is (x_t - x_0) / sigma: as in x_0, each of its terms has its own relative error.
    scale = abs(x_t * sigma * c_in**2) + abs(data * c_in * output)
    assert (abs(PROCESS.to_eps(*given) - (x_t - denoised) / sigma) <= RTOL * scale).all()
    np.testing.assert_allclose(PROCESS.scale_input(*given[1:]), c_in * x_t, rtol=RTOL)
    target = (x_0 - c_skip * x_t) / c_out
    scale = abs(sigma / data * x_0 * c_in) + abs(data * noise * c_in)
    assert (abs(PROCESS.target(*float32(x_0, noise), TIMES) - target) <= RTOL * scale).all()


def test_target_is_what_the_conversions_invert():
    x_0, noise = float32(*arrays())
    x_t = PROCESS.q_sample(x_0, TIMES, noise)
    target = PROCESS.target(x_0, noise, TIMES)
    # x_t holds x_0 to the last digit of x_t, and noise to the last digit of x_t / sigma.
    size = (abs(np.asarray(x_0)) + SIGMAS[:, None, None] * abs(np.asarray(noise))).max()
    for row, sigma in enumerate(SIGMAS):
        found = PROCESS.to_x0(target, x_t, TIMES)[row], PROCESS.to_eps(target, x_t, TIMES)[row]
        assert abs(found[0] - x_0[row]).max() <= RTOL * (1 + sigma) * 4
        assert abs(found[1] - noise[row]).max() <= RTOL * (1 + 1 / np.hypot(sigma, 0.7)) * 4
    assert size > 80


def test_network_input_and_target_have_variance_1_at_every_sigma():
    rng = np.random.default_rng(0)
    x_0, noise = float32(0.7 * rng.normal(size=(5, 20_000)), rng.normal(size=(5, 20_000)))
    # The mean square of n normal numbers deviates by sqrt(2 / n), here 0.01; five deviations.
    for values in (PROCESS.scale_input(PROCESS.q_sample(x_0, TIMES, noise), TIMES), PROCESS.target(x_0, noise, TIMES)):
        np.testing.assert_allclose(jnp.square(values).mean(1), 1, atol=0.05)


def test_loss_is_the_papers():
    x_0, noise = arrays()
    sigma, data = SIGMAS[:, None, None], 0.7
    weight = (sigma**2 + data**2) / (sigma * data) ** 2

    def model_fn(x, time, cond):
        assert cond == "cond" and time.dtype == x.dtype == jnp.float32
        np.testing.assert_array_equal(time, TIMES)
        return jnp.tanh(x + time[:, None, None])

    x_t = x_0 + sigma * noise
    output = np.tanh(x_t / np.sqrt(sigma**2 + data**2) + np.log(sigma) / 4)
    denoised = data**2 / (sigma**2 + data**2) * x_t + sigma * data / np.sqrt(sigma**2 + data**2) * output
    expected = (weight * (denoised - x_0) ** 2).mean((1, 2))
    total, metrics = loss(PROCESS, model_fn, *float32(x_0), TIMES, *float32(noise), "cond")
    # An error of F is a difference of two numbers of size 1 to 3, each good to RTOL; its square's mean is of size 1.
    np.testing.assert_allclose(total, expected, atol=4 * 3 * RTOL * 3)
    np.testing.assert_array_equal(metrics["mse"], total)


def test_loss_is_least_at_the_posterior_mean():
    count = 4096
    process = EDMSpec().build()
    rng = np.random.default_rng(0)
    x_0, noise = float32(rng.multivariate_normal(MEAN, COVARIANCE, count), rng.normal(size=(count, 3)))
    t, model_fn = process.random_time(keys(count)), continuous_model(process)

    @jax.jit
    def mean_loss(shift):
        total, _ = loss(process, lambda *given: model_fn(*given) + shift, x_0, t, noise, None)
        return total.mean()

    best = float(mean_loss(0.0))
    for shift in (-0.3, 0.3):
        # E L(shift) = E L(0) + shift^2: the cross term averages 12,288 errors of deviation below 1.5; five deviations.
        bound = 5 * 2 * abs(shift) * 1.5 / np.sqrt(3 * count)
        assert abs(float(mean_loss(shift)) - best - shift**2) < bound < shift**2


def test_training_times_are_log_normal_and_fall_into_quarters():
    process = EDMSpec(p_mean=-0.4, p_std=1.7).build()
    time = process.random_time(keys(4096))
    assert time.dtype == jnp.float32
    assert kstest(4 * np.asarray(time, np.float64), norm(-0.4, 1.7).cdf).pvalue > 1e-3
    quarter = np.asarray(process.quarter(time))
    # The share of a quarter deviates by sqrt(3 / 16 / 4096), 0.007; five deviations.
    np.testing.assert_allclose(np.bincount(quarter, minlength=4) / 4096, 0.25, atol=0.035)
    order = np.argsort(time)
    assert (np.diff(quarter[order]) >= 0).all()
    edges = (-0.4 + 1.7 * norm.ppf([0.2, 0.3, 0.45, 0.55, 0.7, 0.8])) / 4
    np.testing.assert_array_equal(process.quarter(jnp.asarray(edges, jnp.float32)), [0, 1, 1, 2, 2, 3])
    # One key per example, whatever the batch.
    np.testing.assert_array_equal(process.random_time(keys(4096)[5:7]), time[5:7])


@pytest.mark.parametrize("spacing", ["linspace", "karras"])
def test_rows_are_the_papers(spacing):
    process = EDMSpec(sigma_min=0.01, sigma_max=50.0, rho=5.0).build().respace(10, spacing)
    i = np.arange(10)
    expected = (50 ** (1 / 5) + i / 9 * (0.01 ** (1 / 5) - 50 ** (1 / 5))) ** 5
    np.testing.assert_allclose(process.sigma[::-1], expected, rtol=1e-12)
    np.testing.assert_allclose(process.time, np.log(process.sigma) / 4, rtol=1e-12)
    np.testing.assert_array_equal(process.signal, np.ones(10))
    assert process.respace(10) == process and process.num_steps == 10 and hash(process) == hash(process.respace(10))
    np.testing.assert_allclose(process.respace(1).sigma, [50])
    assert EDMSpec().build().num_steps == 0


def test_a_row_and_its_time_are_one_noise_level():
    process = EDMSpec().build().respace(5)
    rows, times = jnp.arange(5), jnp.asarray(process.time, jnp.float32)
    np.testing.assert_array_equal(process.time_of(rows), times)
    for by_row, by_time in zip(process.levels(rows, 3), process.levels(times, 3), strict=True):
        assert by_row.shape == (5, 1, 1)
        np.testing.assert_allclose(by_row, by_time, rtol=RTOL)


def test_goes_to_json_and_back_among_other_processes():
    for spec in (EDMSpec(sigma_data=0.25, p_mean=-0.4), FlowSpec(shift=3.0, std=0.8), ProcessSpec(num_steps=20)):
        written = json.loads(json.dumps(to_json(Holder(process=spec))))
        assert from_json(Holder, written) == Holder(process=spec)
    assert to_json(EDMSpec())["type"] == "edm" and to_json(FlowSpec())["type"] == "flow"
    assert "type" not in to_json(ProcessSpec())
    assert [spec.max_steps for spec in (EDMSpec(), FlowSpec(), ProcessSpec(num_steps=20))] == [None, None, 20]


def test_what_is_refused():
    for fields, line in (
        ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max; got 0.0 and 80.0"),
        ({"sigma_min": 90.0}, "0 < sigma_min < sigma_max"),
        ({"sigma_data": 0.0}, "EDM's sigma_data must be positive"),
        ({"rho": -1.0}, "EDM's rho must be positive"),
        ({"p_std": float("nan")}, "EDM's p_std must be positive"),
    ):
        with pytest.raises(ValueError, match=line):
            EDMSpec(**fields)
    with pytest.raises(ValueError, match="must be karras .*; got 'trailing'"):
        PROCESS.respace(4, "trailing")
    with pytest.raises(ValueError, match="whole number of at least 1; got 0"):
        PROCESS.respace(0)
    with pytest.raises(ValueError, match="set weighting to none, not to p2"):
        PROCESS.loss_weight(TIMES, "p2")
    with pytest.raises(ValueError, match="VariancePreserving is discrete; name a noise level by its row"):
        ProcessSpec(num_steps=4).build().levels_at(TIMES)


def test_is_a_static_pytree():
    assert jax.tree.leaves(PROCESS) == [] and EDM() != PROCESS and EDM() == EDMSpec().build()
    x_0, noise = float32(*arrays())
    passed = jax.jit(lambda process, *given: process.q_sample(*given))(PROCESS, x_0, TIMES, noise)
    # Fused, a product and a sum may be rounded once instead of twice.
    np.testing.assert_allclose(passed, PROCESS.q_sample(x_0, TIMES, noise), rtol=RTOL, atol=RTOL)
