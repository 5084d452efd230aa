import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion import ProcessSpec, Schedule, VariancePreserving

SCHEDULES = ["cosine", "linear", "sigmoid"]
PREDICTIONS = ["eps", "x0", "v"]
ROWS = np.array([0, 1, 10, 400, 900, 999])
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def column(values, ndim=4):
    return np.reshape(values, (-1,) + (1,) * (ndim - 1))


@pytest.fixture
def arrays():
    shape = (len(ROWS), 4, 4, 3)
    return draw(0, *shape), draw(1, *shape)


def noised(process, x_0, noise):
    """x_t, eps and v in float64, from the definitions."""
    a = column(process.schedule.alpha_bar[ROWS])
    x_t = np.sqrt(a) * x_0.astype(np.float64) + np.sqrt(1 - a) * noise
    return x_t, np.sqrt(a) * noise - np.sqrt(1 - a) * x_0


@every_schedule
def test_q_sample(schedule, arrays):
    process = ProcessSpec(schedule=schedule).build()
    x_t, _ = noised(process, *arrays)
    x_0, noise = map(jnp.asarray, arrays)
    np.testing.assert_allclose(process.q_sample(x_0, jnp.asarray(ROWS), noise), x_t, rtol=1e-5, atol=1e-6)


@every_schedule
def test_posterior_is_the_product_of_the_two_gaussians(schedule, arrays):
    process = ProcessSpec(schedule=schedule).build()
    x_0, x_t = arrays
    table = process.schedule.alpha_bar
    rows = ROWS[1:]
    a, a_prev = column(table[rows]), column(table[rows - 1])
    alpha = a / a_prev
    variance = 1 / (alpha / (1 - alpha) + 1 / (1 - a_prev))
    mean = variance * (np.sqrt(alpha) / (1 - alpha) * x_t[1:] + np.sqrt(a_prev) / (1 - a_prev) * x_0[1:])
    result = process.posterior(jnp.asarray(x_0), jnp.asarray(x_t), jnp.asarray(ROWS))
    assert result.variance.shape == (len(ROWS), 1, 1, 1)
    np.testing.assert_allclose(result.mean[1:], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.variance[1:], variance, rtol=1e-6)
    np.testing.assert_allclose(result.log_variance[1:], np.log(variance), rtol=1e-6)
    np.testing.assert_array_equal(result.mean[0], x_0[0])
    assert result.variance[0].item() == 0 and np.isfinite(result.log_variance[0]).all()


@every_schedule
@every_prediction
def test_conversions_recover_x0_eps_and_v(schedule, prediction, arrays):
    process = ProcessSpec(schedule=schedule, prediction=prediction).build()
    x_t, v = noised(process, *arrays)
    x_0, noise = arrays
    truth = {"eps": noise, "x0": x_0, "v": v}
    a = column(process.schedule.alpha_bar[ROWS])
    # How far rounding the inputs to float32 is amplified by the division that a conversion needs.
    amplified = {("eps", "x0"): 1 / np.sqrt(a), ("eps", "v"): 1 / np.sqrt(a)}
    amplified |= {("x0", "eps"): 1 / np.sqrt(1 - a), ("x0", "v"): 1 / np.sqrt(1 - a)}
    given = jnp.asarray(truth[prediction], jnp.float32)
    arguments = given, jnp.asarray(x_t, jnp.float32), jnp.asarray(ROWS)
    for name, converted in (
        ("x0", process.to_x0(*arguments)),
        ("eps", process.to_eps(*arguments)),
        ("v", process.to_v(*arguments)),
    ):
        bound = 2e-6 * np.broadcast_to(amplified.get((prediction, name), 1.0), a.shape)
        assert (abs(np.asarray(converted) - truth[name]) < bound).all(), name


@every_prediction
def test_target_is_what_the_conversions_invert(prediction, arrays):
    process = ProcessSpec(prediction=prediction, num_steps=100).build()
    x_0, noise = map(jnp.asarray, arrays)
    t = jnp.array([0, 5, 20, 40, 60, 80])
    x_t = process.q_sample(x_0, t, noise)
    target = process.target(x_0, noise, t)
    np.testing.assert_allclose(process.to_x0(target, x_t, t), x_0, atol=1e-5)
    np.testing.assert_allclose(process.to_eps(target, x_t, t), noise, atol=2e-4)


@every_prediction
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_prediction_round_trip(schedule, prediction):
    process = ProcessSpec(schedule=schedule, prediction=prediction).build()
    given, x_t, t = jnp.asarray(draw(0, 3, 5)), jnp.asarray(draw(1, 3, 5)), jnp.array([100, 300, 500])
    for name, convert in (("x0", process.to_x0), ("eps", process.to_eps), ("v", process.to_v)):
        other = dataclasses.replace(process, prediction=name)
        back = {"x0": other.to_x0, "eps": other.to_eps, "v": other.to_v}[prediction]
        np.testing.assert_allclose(back(convert(given, x_t, t), x_t, t), given, rtol=1e-4, atol=1e-4)


@every_schedule
@pytest.mark.parametrize("num_steps", [1, 25, 1000])
def test_learned_range_ends_at_beta_and_the_posterior_variance(schedule, num_steps):
    process = ProcessSpec(schedule=schedule, variance="learned_range").build().respace(num_steps)
    a = process.schedule.alpha_bar
    a_prev = np.append(1.0, a[:-1])
    beta = 1 - a / a_prev
    posterior = beta * (1 - a_prev) / (1 - a)
    posterior[0] = posterior[1] if num_steps > 1 else beta[0]
    t = jnp.arange(num_steps)
    ones = jnp.ones((num_steps, 2, 1))
    for channel, expected in ((1, np.log(beta)), (-1, np.log(posterior)), (0, np.log(beta * posterior) / 2)):
        result = process.log_variance(channel * ones, t)
        assert result.shape == ones.shape
        np.testing.assert_allclose(result[:, 1, 0], expected, rtol=1e-5, atol=1e-6)
    for variance, expected in (("large", np.log(beta)), ("small", np.log(posterior))):
        fixed = dataclasses.replace(process, variance=variance).log_variance(None, t)
        np.testing.assert_allclose(fixed, expected, rtol=1e-6)


def test_variance_channels_must_match_the_process():
    fixed, learned = (
        ProcessSpec(num_steps=4).build(),
        ProcessSpec(num_steps=4, variance="learned_range").build(),
    )
    with pytest.raises(ValueError, match="got some variance channels"):
        fixed.log_variance(jnp.zeros((1, 2)), jnp.array([0]))
    with pytest.raises(ValueError, match="got no variance channels"):
        learned.log_variance(None, jnp.array([0]))


def test_split():
    output = jnp.arange(12.0).reshape(2, 6)
    prediction, channels = ProcessSpec(num_steps=4).build().split(output)
    assert prediction is output and channels is None
    learned = ProcessSpec(num_steps=4, variance="learned_range").build()
    prediction, channels = learned.split(output)
    np.testing.assert_array_equal(prediction, output[:, :3])
    np.testing.assert_array_equal(channels, output[:, 3:])
    with pytest.raises(ValueError, match="even number"):
        learned.split(output[:, :5])


def test_works_closed_over_and_as_an_argument_of_jit():
    process = ProcessSpec(num_steps=20).build()
    x_0, noise, t = jnp.asarray(draw(0, 2, 3)), jnp.asarray(draw(1, 2, 3)), jnp.array([0, 19])
    closed = jax.jit(process.q_sample)(x_0, t, noise)
    passed = jax.jit(lambda process, *arguments: process.q_sample(*arguments))(process, x_0, t, noise)
    np.testing.assert_array_equal(closed, passed)
    assert closed.dtype == jnp.float32
    np.testing.assert_allclose(closed, process.q_sample(x_0, t, noise), rtol=1e-6)


def test_bfloat16_data_is_noised_in_float32():
    process = ProcessSpec(num_steps=20).build()
    x_0 = jnp.ones((1, 2), jnp.bfloat16)
    assert process.q_sample(x_0, jnp.array([3]), x_0).dtype == jnp.float32


def test_spec_builds_the_process_it_names():
    spec = ProcessSpec(schedule="linear", num_steps=30, prediction="v", variance="large")
    assert spec.build() == VariancePreserving(schedule=Schedule.linear(30), prediction="v", variance="large")
    assert ProcessSpec().build() == VariancePreserving(schedule=Schedule.cosine(1000))


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_conversions_where_only_noise_is_left(prediction):
    process = ProcessSpec(schedule="linear", prediction=prediction, zero_terminal_snr=True).build()
    assert process.schedule == Schedule.linear(1000).zero_terminal_snr()
    x_0, noise, t = jnp.asarray(draw(0, 2, 3)), jnp.asarray(draw(1, 2, 3)), jnp.array([999, 999])
    x_t = process.q_sample(x_0, t, noise)
    np.testing.assert_array_equal(x_t, noise)
    target = process.target(x_0, noise, t)
    np.testing.assert_allclose(process.to_x0(target, x_t, t), x_0, rtol=1e-6)
    np.testing.assert_allclose(process.to_eps(target, x_t, t), noise, rtol=1e-6)
    np.testing.assert_allclose(process.to_v(target, x_t, t), -x_0, rtol=1e-6)


def test_eps_and_zero_terminal_snr_exclude_each_other():
    with pytest.raises(ValueError, match="^zero_terminal_snr leaves nothing .*; set prediction to v or x0$"):
        ProcessSpec(zero_terminal_snr=True)
    with pytest.raises(ValueError, match="^eps does not give x_0 where alpha_bar is 0; predict v or x0"):
        VariancePreserving(schedule=Schedule.cosine(10).zero_terminal_snr())
    with pytest.raises(ValueError, match="at least 2 steps"):
        ProcessSpec(num_steps=1, prediction="v", zero_terminal_snr=True).build()


@pytest.mark.parametrize("field", ["schedule", "prediction", "variance"])
def test_spec_refuses_unknown_names(unchecked, field):
    spec = ProcessSpec(**{field: "quadratic"})
    with pytest.raises(ValueError, match=f"{field} must be one of .*'quadratic'"):
        spec.build()
