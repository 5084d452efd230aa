import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.linear_gaussian import COVARIANCE, DIM, MEAN, optimal_model, optimal_x0, recovered_map
from unclip_jax.diffusion import DDPM, AnalyticDPM, KeyNoise, ProcessSpec, Threshold, X0Variance, squared_errors

SCHEDULES = ["cosine", "linear", "sigmoid"]
NO_THRESHOLD = Threshold(kind="none")
# Isotropic Gaussian data has this variance in every direction.
C = 0.3


def table(alpha_bar, variance):
    return X0Variance(alpha_bar=tuple(np.array(alpha_bar).tolist()), variance=tuple(np.array(variance).tolist()))


def gaussian(process, c=C):
    """Var[x_0 | x_t] of isotropic Gaussian data, exact at every row."""
    a = process.schedule.alpha_bar
    return table(a, c * (1 - a) / (a * c + 1 - a))


def mean_variance(a):
    """The same of the data in `linear_gaussian`, averaged over its dimensions."""
    return np.array([np.trace(COVARIANCE - np.sqrt(each) * optimal_x0(each)[0] @ COVARIANCE) / DIM for each in a])


def final_variance(process, sampler, c=C):
    """Of what the sampler draws by the optimal denoiser of isotropic Gaussian data, in float64."""
    process = process.respace(sampler.steps)
    rows, a = sampler.coefficients(process), process.schedule.alpha_bar
    scale = rows["noise"] if "noise" in rows else rows["adds_noise"] * np.exp(rows["log_variance_low"] / 2)
    factor = rows["x_0"] * np.sqrt(a) * c / (a * c + 1 - a) + rows["x_t"]
    variance = 1.0
    for k in reversed(range(sampler.steps)):
        variance = factor[k] ** 2 * variance + scale[k] ** 2
    return variance


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [4, 25, 1000])
def test_variance_is_that_of_the_exact_reverse_step(schedule, steps):
    process = ProcessSpec(schedule=schedule).build()
    respaced = process.respace(steps)
    a, a_prev = respaced.schedule.alpha_bar, respaced.schedule.alpha_bar_prev
    # Var[x_prev | x_t] of jointly Gaussian x_prev and x_t.
    prev, current = a_prev * C + 1 - a_prev, a * C + 1 - a
    expected = prev - a / a_prev * prev**2 / current
    rows = AnalyticDPM(steps=steps, x0_variance=gaussian(process)).coefficients(respaced)
    np.testing.assert_allclose(rows["noise"][1:] ** 2, expected[1:], rtol=1e-8)
    assert rows["noise"][0] == 0


def test_variance_is_the_papers():
    process = ProcessSpec(schedule="linear").build().respace(10)
    a, a_prev = process.schedule.alpha_bar[1:], process.schedule.alpha_bar_prev[1:]
    # Gamma of Gaussian data: eps(x_t) = sqrt(1 - a) (x_t - sqrt(a) mu) / Var[x_t].
    gamma = (1 - a) / (a * C + 1 - a)
    small = (1 - a_prev) / (1 - a) * (1 - a / a_prev)
    theorem = small + (np.sqrt((1 - a) * a_prev / a) - np.sqrt(1 - a_prev - small)) ** 2 * (1 - gamma)
    rows = AnalyticDPM(steps=10, x0_variance=gaussian(process)).coefficients(process)
    np.testing.assert_allclose(rows["noise"][1:] ** 2, theorem, rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [3, 5, 10, 30])
def test_few_steps_draw_the_variance_of_the_data(schedule, steps):
    process = ProcessSpec(schedule=schedule).build()
    analytic = final_variance(process, AnalyticDPM(steps=steps, x0_variance=gaussian(process)))
    small, large = (final_variance(process, DDPM(steps=steps, variance=name)) for name in ("small", "large"))
    # The last step draws nothing, and so leaves out what is uncertain in the lowest row.
    np.testing.assert_allclose(analytic, C - gaussian(process).variance[0], rtol=1e-3)
    assert small < 0.95 * C and large > 1.05 * C


def test_one_variance_for_directions_that_differ():
    process = ProcessSpec(prediction="v", variance="learned_range").build()
    a = process.schedule.alpha_bar
    samplers = [
        AnalyticDPM(steps=10, x0_variance=table(a, mean_variance(a))),
        DDPM(steps=10, variance="small"),
        DDPM(steps=10, variance="large"),
    ]
    traces = [np.trace(recovered_map(process, sampler, 0.7).covariance) for sampler in samplers]
    analytic, small, large = (abs(trace / np.trace(COVARIANCE) - 1) for trace in traces)
    assert analytic < 0.04 and small > 0.3 and large > 0.1


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_statistic_is_measured(prediction):
    process = ProcessSpec(prediction=prediction, variance="learned_range").build()
    model_fn, rows = optimal_model(process), process.schedule.respace(30).timesteps
    data = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 4000).astype(np.float32)

    @jax.jit
    def run(x_0, noise):
        return squared_errors(process, model_fn, None, x_0, noise, rows, threshold=NO_THRESHOLD)

    errors = [
        run(data[first : first + 1000], KeyNoise(key=jax.random.key(0), indices=jnp.arange(first, first + 1000)))
        for first in range(0, 4000, 1000)
    ]
    statistic = X0Variance.of(process, rows, np.concatenate(errors, axis=1))
    a = process.schedule.alpha_bar
    # 4000 examples of 3 numbers; rows between the 30 are interpolated.
    np.testing.assert_allclose(statistic.at(a), mean_variance(a), rtol=0.05)


def test_interpolation_of_the_statistic():
    process = ProcessSpec(schedule="linear").build()
    a, exact, rows = process.schedule.alpha_bar, gaussian(process), process.schedule.respace(50).timesteps
    some = table(a[rows], np.take(exact.variance, rows))
    np.testing.assert_allclose(some.at(a), exact.variance, rtol=0.01)
    np.testing.assert_allclose(exact.at(a), exact.variance, rtol=1e-12)
    np.testing.assert_allclose(some.at(np.array([1 - 1e-9, 0.0])), np.take(some.variance, [0, -1]), rtol=1e-12)


def test_errors_are_of_the_thresholded_x_0_and_of_each_example():
    process, rows = ProcessSpec(prediction="x0").build(), np.array([0, 500])
    x_0, noise = jnp.zeros((2, 4, 4, 3)), KeyNoise(key=jax.random.key(0), indices=jnp.arange(2))
    seen = []

    def model_fn(x_t, t, cond):
        seen.append((x_t.dtype, t.dtype, t.shape, cond))
        return jnp.full_like(x_t, t[:, None, None, None] / 1000 + 3).at[0].set(0.5)

    errors = squared_errors(process, model_fn, "cond", x_0, noise, rows)
    np.testing.assert_allclose(errors, [[0.25, 1], [0.25, 1]])
    free = squared_errors(process, model_fn, "cond", x_0, noise, rows, threshold=NO_THRESHOLD)
    np.testing.assert_allclose(free, [[0.25, 9], [0.25, 3.5**2]], rtol=1e-6)
    assert set(seen) == {(jnp.dtype("float32"), jnp.dtype("float32"), (2,), "cond")}


def test_bounds():
    process = ProcessSpec(schedule="linear").build().respace(10)
    schedule = process.schedule
    wild = table(schedule.alpha_bar, np.full(10, 1e9))

    def variance(**settings):
        return AnalyticDPM(steps=10, **settings).coefficients(process)["noise"][1:] ** 2

    small, scale = schedule.posterior_variance[1:], schedule.posterior_x_0[1:] ** 2
    np.testing.assert_allclose(variance(x0_variance=wild), small + scale / schedule.snr[1:], rtol=1e-12)
    ranged = variance(x0_variance=wild, data_range=(-1.0, 2.0))
    np.testing.assert_allclose(ranged, small + scale * np.minimum(1 / schedule.snr[1:], 2.25), rtol=1e-12)
    none = table(schedule.alpha_bar, np.zeros(10))
    np.testing.assert_allclose(variance(x0_variance=none), small, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_from_noise_alone(steps):
    process = ProcessSpec(schedule="linear", prediction="v", zero_terminal_snr=True).build()
    sampler = AnalyticDPM(steps=steps, x0_variance=gaussian(process))
    assert all(np.isfinite(column).all() for column in sampler.coefficients(process.respace(steps)).values())
    expected = C - gaussian(process.respace(steps)).variance[0]
    np.testing.assert_allclose(final_variance(process, sampler), expected, rtol=1e-6, atol=1e-12)


def test_are_validated_values(unchecked):
    statistic = table([0.9, 0.5], [0.1, 0.2])
    sampler = AnalyticDPM(steps=3, x0_variance=statistic)
    assert hash(sampler) == hash(AnalyticDPM(steps=3, x0_variance=table([0.9, 0.5], [0.1, 0.2])))
    assert sampler != AnalyticDPM(steps=3, x0_variance=statistic, data_range=(-1.0, 1.0))
    for arguments, line in (
        (([0.9, 0.5], [0.1]), "1 values for 2 noise levels"),
        (([], []), "0 values for 0 noise levels"),
        (([0.5, 0.9], [0.1, 0.2]), "must be strictly decreasing"),
        (([1.0, 0.9], [0.1, 0.2]), "must be strictly decreasing"),
        (([0.9, -0.1], [0.1, 0.2]), "must be strictly decreasing"),
        (([0.9, 0.5], [0.1, -0.2]), "must be finite and at least 0"),
        (([0.9, 0.5], [0.1, np.nan]), "must be finite and at least 0"),
    ):
        with pytest.raises(ValueError, match=line):
            table(*arguments)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        AnalyticDPM(steps=0, x0_variance=statistic)
    with pytest.raises(ValueError, match="range must be .low, high.; got"):
        AnalyticDPM(steps=3, x0_variance=statistic, data_range=(1.0, 1.0))
