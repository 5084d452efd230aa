import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from unclip_jax.diffusion import ProcessSpec, Schedule, VariancePreserving, loss

ROWS = np.array([0, 0, 1, 5, 20, 39])
SHAPE = (len(ROWS), 4, 4, 3)
PREDICTIONS = ["eps", "x0", "v"]


def batch():
    rng = np.random.default_rng(0)
    x_0 = np.clip(rng.normal(size=SHAPE), -1, 1).round(2).astype(np.float32)
    noise = rng.normal(size=SHAPE).astype(np.float32)
    error, channels = (
        0.1 * rng.normal(size=SHAPE).astype(np.float32),
        rng.uniform(-1, 1, SHAPE).astype(np.float32),
    )
    return x_0, noise, error, channels


def run(process, output, arguments, **settings):
    """The loss of a network that always outputs `output`."""
    constant = jnp.asarray(output, jnp.float32)
    x_0, t, noise = (jnp.asarray(values) for values in arguments)
    x_0, noise = x_0.astype(jnp.float32), noise.astype(jnp.float32)

    @jax.jit
    def compiled(x_0, t, noise):
        return loss(process, lambda x_t, t, cond: constant, x_0, t, noise, None, **settings)

    return compiled(x_0, t, noise)


def learned(prediction="eps", num_steps=40) -> VariancePreserving:
    return ProcessSpec(num_steps=num_steps, prediction=prediction, variance="learned_range").build()


def column(values):
    return np.reshape(values, (-1, 1, 1, 1))


def exact_vlb_term(alpha_bar, rows, x_0, x_t, predicted_x_0, channels):
    """L_t in bits per dimension, in float64, from densities and precision weights."""
    a, previous = column(alpha_bar[rows]), np.append(1.0, alpha_bar)
    a_prev = column(previous[rows])
    alpha = a / a_prev
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = 1 / (alpha / (1 - alpha) + 1 / (1 - a_prev))
        on_x_0, on_x_t = variance * np.sqrt(a_prev) / (1 - a_prev), variance * np.sqrt(alpha) / (1 - alpha)
    first = np.isclose(a_prev, 1)
    alpha_1 = alpha_bar[1] / alpha_bar[0]
    second_variance = 1 / (alpha_1 / (1 - alpha_1) + 1 / (1 - alpha_bar[0]))
    low = np.where(first, second_variance, variance)
    model_variance = np.exp((channels + 1) / 2 * np.log(1 - alpha) + (1 - channels) / 2 * np.log(low))
    true_mean = np.where(first, x_0, on_x_0 * x_0 + on_x_t * x_t)
    mean = np.where(first, predicted_x_0, on_x_0 * predicted_x_0 + on_x_t * x_t)
    # KL between Gaussians as the expectation of the log ratio.
    cross = np.log(model_variance) + (low + (true_mean - mean) ** 2) / model_variance
    kl = (cross - np.log(low) - 1) / 2
    sigma = np.sqrt(model_variance)
    upper = np.where(x_0 > 0.999, np.inf, x_0 + 1 / 255)
    lower = np.where(x_0 < -0.999, -np.inf, x_0 - 1 / 255)
    # In the tail where neither is rounded to 1.
    above = norm.sf(lower, mean, sigma) - norm.sf(upper, mean, sigma)
    below = norm.cdf(upper, mean, sigma) - norm.cdf(lower, mean, sigma)
    nll = -np.log(np.maximum(np.where(x_0 > mean, above, below), 1e-12))
    return np.where(first, nll, kl).mean((1, 2, 3)) / np.log(2)


def exact_inputs(process, prediction):
    x_0, noise, error, channels = (values.astype(np.float64) for values in batch())
    a = column(process.schedule.alpha_bar[ROWS])
    x_t = np.sqrt(a) * x_0 + np.sqrt(1 - a) * noise
    # Errors small in x_0, as those of a trained network are.
    predicted_x_0 = x_0 + np.sqrt((1 - a) / (1 + a)) * error
    eps = (x_t - np.sqrt(a) * predicted_x_0) / np.sqrt(1 - a)
    output = {"x0": predicted_x_0, "eps": eps, "v": np.sqrt(a) * eps - np.sqrt(1 - a) * predicted_x_0}[prediction]
    target = {"x0": x_0, "eps": noise, "v": np.sqrt(a) * noise - np.sqrt(1 - a) * x_0}[prediction]
    return x_0, noise, x_t, predicted_x_0, channels, output, target


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_hybrid_loss_against_float64(schedule, prediction):
    process = ProcessSpec(schedule=schedule, num_steps=40, prediction=prediction, variance="learned_range").build()
    x_0, noise, x_t, predicted_x_0, channels, output, target = exact_inputs(process, prediction)
    vlb = 40 * exact_vlb_term(process.schedule.alpha_bar, ROWS, x_0, x_t, predicted_x_0, channels)
    mse = ((output - target) ** 2).mean((1, 2, 3))
    network_output, arguments = np.concatenate([output, channels], -1), (x_0, ROWS, noise)
    total, metrics = run(process, network_output, arguments)
    assert total.shape == (len(ROWS),) and set(metrics) == {"mse", "vlb"}
    # A difference of numbers of `target`'s size knows itself to 1e-7 of that; its square to twice the product.
    rounded = 2e-7 * abs(target).max() * mse.max() ** 0.5
    np.testing.assert_allclose(metrics["mse"], mse, rtol=1e-4, atol=rounded)
    np.testing.assert_allclose(metrics["vlb"], vlb, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(total, mse + 0.001 * vlb, rtol=1e-3, atol=1e-7)
    if schedule == "cosine":
        heavier, _ = run(process, network_output, arguments, vlb_weight=1.0)
        np.testing.assert_allclose(heavier, mse + vlb, rtol=1e-3)


def test_mean_of_vlb_over_uniform_t_is_the_sum_of_the_terms():
    process = learned("x0", num_steps=12)
    t = np.arange(12)
    rng = np.random.default_rng(1)
    x_0, noise, error = (rng.uniform(-0.9, 0.9, (12, 2, 2, 1)) for _ in range(3))
    a = column(process.schedule.alpha_bar)
    x_t, predicted = np.sqrt(a) * x_0 + np.sqrt(1 - a) * noise, x_0 + 0.05 * error
    terms = exact_vlb_term(process.schedule.alpha_bar, t, x_0, x_t, predicted, np.zeros_like(x_0))
    _, metrics = run(process, np.concatenate([predicted, np.zeros_like(x_0)], -1), (x_0, t, noise))
    np.testing.assert_allclose(metrics["vlb"].mean(), terms.sum(), rtol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_mean_is_detached_in_the_bound(prediction):
    process = learned(prediction)
    x_0, noise, error, channels = map(jnp.asarray, batch())

    def losses(parameters):
        def model_fn(x_t, t, cond):
            mean = x_t * parameters["mean"] + error
            return jnp.concatenate([mean, channels * parameters["variance"]], axis=-1)

        total, metrics = loss(process, model_fn, x_0, jnp.asarray(ROWS), noise, None)
        return {"total": total.sum(), "mse": metrics["mse"].sum(), "vlb": metrics["vlb"].sum()}

    parameters = {"mean": jnp.float32(0.5), "variance": jnp.float32(0.8)}
    gradient = jax.jit(jax.jacrev(losses))(parameters)
    assert gradient["vlb"]["mean"] == 0 and gradient["vlb"]["variance"] != 0
    assert gradient["mse"]["mean"] != 0 and gradient["mse"]["variance"] == 0
    np.testing.assert_allclose(gradient["total"]["mean"], gradient["mse"]["mean"], rtol=1e-6)
    np.testing.assert_allclose(gradient["total"]["variance"], 0.001 * gradient["vlb"]["variance"], rtol=1e-5)


def test_gradients_of_an_untrained_network_are_finite():
    process = ProcessSpec(variance="learned_range").build()
    x_0, noise, _, _ = map(jnp.asarray, batch())

    def total(scale):
        def model_fn(x_t, t, cond):
            return jnp.concatenate([x_t * scale, x_t * scale], axis=-1)

        return loss(process, model_fn, x_0, jnp.array([0, 1, 2, 500, 998, 999]), noise, None)[0].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.float32(0.0))
    assert np.isfinite(value) and np.isfinite(gradient)


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("weighting", ["none", "min_snr", "p2"])
def test_losses_where_only_noise_is_left(prediction, weighting):
    process = ProcessSpec(prediction=prediction, variance="learned_range", zero_terminal_snr=True).build()
    ordinary = dataclasses.replace(process, schedule=Schedule.cosine(1000))
    weights = process.loss_weights(weighting)
    assert np.isfinite(weights).all() and weights[-1] == (weighting == "none")
    # The cosine schedule all but ends in noise, so that little changes.
    np.testing.assert_allclose(weights, ordinary.loss_weights(weighting), rtol=0.01, atol=1e-4)
    x_0, noise, _, _ = map(jnp.asarray, batch())

    def model_fn(x_t, t, cond):
        return jnp.concatenate([0.5 * x_t, x_t], axis=-1)

    rows = jnp.array([0, 1, 2, 500, 998, 999])
    total, metrics = loss(process, model_fn, x_0, rows, noise, None, weighting=weighting)
    expected, terms = loss(ordinary, model_fn, x_0, rows, noise, None, weighting=weighting)
    np.testing.assert_allclose(metrics["mse"], terms["mse"], rtol=0.02)
    np.testing.assert_allclose(metrics["vlb"], terms["vlb"], rtol=0.05, atol=0.01)
    np.testing.assert_allclose(total, expected, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_fixed_variance_trains_by_mse_alone(prediction):
    process = ProcessSpec(num_steps=40, prediction=prediction).build()
    x_0, noise, *_, output, target = exact_inputs(process, prediction)
    total, metrics = run(process, output, (x_0, ROWS, noise))
    assert set(metrics) == {"mse"}
    mse = ((output - target) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(total, mse, rtol=1e-4, atol=2e-7 * abs(target).max() * mse.max() ** 0.5)


def test_min_snr_weights_of_each_prediction():
    process = ProcessSpec().build()
    snr = process.schedule.alpha_bar / (1 - process.schedule.alpha_bar)
    clipped = np.minimum(snr, 5)
    assert (snr > 5).any() and (snr < 5).any()
    for prediction, expected in (("eps", clipped / snr), ("x0", clipped), ("v", clipped / (snr + 1))):
        weights = dataclasses.replace(process, prediction=prediction).loss_weights("min_snr")
        np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_p2_weights_of_each_prediction():
    process = ProcessSpec().build()
    a = process.schedule.alpha_bar
    # 1 / (1 + SNR) is 1 - alpha_bar.
    for prediction, expected in (("eps", 1 - a), ("x0", a), ("v", a * (1 - a))):
        weights = dataclasses.replace(process, prediction=prediction).loss_weights("p2")
        np.testing.assert_allclose(weights, expected, rtol=1e-9)


@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_a_weighted_loss_does_not_depend_on_what_is_predicted(weighting):
    totals = []
    for prediction in PREDICTIONS:
        process = ProcessSpec(num_steps=40, prediction=prediction).build()
        x_0, noise, *_, output, _ = exact_inputs(process, prediction)
        total, metrics = run(process, output, (x_0, ROWS, noise), weighting=weighting)
        weights = process.loss_weights(weighting)[ROWS]
        np.testing.assert_allclose(total, weights * metrics["mse"], rtol=1e-5)
        totals.append(np.asarray(total))
    np.testing.assert_allclose(totals[1], totals[0], rtol=1e-3)
    np.testing.assert_allclose(totals[2], totals[0], rtol=1e-3)


def test_weighting_leaves_the_bound_alone():
    process = learned()
    x_0, noise, error, channels = batch()
    output = np.concatenate([error, channels], axis=-1)
    total, metrics = run(process, output, (x_0, ROWS, noise), weighting="min_snr")
    weights = process.loss_weights("min_snr")[ROWS]
    np.testing.assert_allclose(total, weights * metrics["mse"] + 0.001 * metrics["vlb"], rtol=1e-5)


def test_refuses_an_unknown_weighting(unchecked):
    with pytest.raises(ValueError, match="weighting must be one of none, min_snr, p2"):
        ProcessSpec().build().loss_weights("sqrt")


def test_the_model_sees_x_t_training_steps_and_cond():
    process = ProcessSpec(num_steps=100).build().respace(5)
    x_0, noise = jnp.ones((2, 3)), jnp.zeros((2, 3))
    t = jnp.array([1, 4])

    def model_fn(x_t, step, cond):
        assert cond == "anything" and step.dtype == jnp.float32
        np.testing.assert_array_equal(step, [25, 99])
        np.testing.assert_array_equal(x_t, process.q_sample(x_0, t, noise))
        return x_t

    loss(process, model_fn, x_0, t, noise, "anything")


def test_a_bfloat16_output_is_compared_in_float32():
    process = ProcessSpec(num_steps=10).build()
    noise = jax.random.normal(jax.random.key(0), (2, 3))

    def model_fn(x_t, t, cond):
        return noise.astype(jnp.bfloat16)

    total, metrics = loss(process, model_fn, noise, jnp.array([0, 9]), noise, None)
    assert total.dtype == metrics["mse"].dtype == jnp.float32
    np.testing.assert_allclose(
        total, jnp.square(noise.astype(jnp.bfloat16).astype(jnp.float32) - noise).mean(1), rtol=1e-6
    )
