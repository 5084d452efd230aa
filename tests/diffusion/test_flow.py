import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

from tests.diffusion.linear_gaussian import COVARIANCE, MEAN, continuous_model
from tests.diffusion.test_edm import float32, keys
from unclip_jax.diffusion import Flow, FlowSpec, dimension_shift, loss

PROCESS = FlowSpec().build()
TIMES = np.array([1.0, 250.0, 600.0, 999.0])


def arrays():
    return np.random.default_rng(0).normal(size=(2, len(TIMES), 3, 2))


def test_straight_line_and_velocity():
    x_0, noise = arrays()
    t = TIMES[:, None, None] / 1000
    x_t, velocity = (1 - t) * x_0 + t * noise, noise - x_0
    given, times = float32(x_0, noise), jnp.asarray(TIMES, jnp.float32)
    # Sums of a few numbers of up to 4, each rounded to 2^-24 of it.
    atol = 4 * 4 * 2.0**-24 * 2
    np.testing.assert_allclose(PROCESS.q_sample(given[0], times, given[1]), x_t, atol=atol)
    np.testing.assert_allclose(PROCESS.target(*given, times), velocity, atol=atol)
    np.testing.assert_allclose(PROCESS.to_x0(*float32(velocity, x_t), times), x_0, atol=atol)
    np.testing.assert_allclose(PROCESS.to_eps(*float32(velocity, x_t), times), noise, atol=atol)
    assert PROCESS.scale_input(given[0], times) is given[0]


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_rows_are_even_before_the_shift_and_leave_out_the_data(shift):
    process = FlowSpec(shift=shift).build().respace(8)
    t = np.arange(1, 9) / 8
    expected = shift * t / (1 + (shift - 1) * t)
    np.testing.assert_allclose(process.sigma, expected, rtol=1e-12)
    assert process.sigma[-1] == 1 and process.signal[-1] == 0 and process.sigma[0] > 0
    np.testing.assert_allclose(process.signal + process.sigma, 1, rtol=1e-12)
    np.testing.assert_allclose(process.time, 1000 * expected, rtol=1e-12)
    assert process.respace(8, "trailing") == process and process.respace(1).sigma.tolist() == [1]
    assert FlowSpec(shift=shift).build().num_steps == 0


def test_shift_closed_forms():
    # s = sqrt(dim / base) keeps sigma / signal times sqrt(base / dim): the uncertainty of a constant image.
    s = dimension_shift(64 * 64 * 3, 32 * 32 * 3)
    assert s == 2
    base, shifted = (FlowSpec(shift=shift).build().respace(10) for shift in (1.0, s))
    # The noisiest row has no signal.
    np.testing.assert_allclose(shifted.snr[:-1], base.snr[:-1] / 4, rtol=1e-12)
    with pytest.raises(ValueError, match="dimensions of at least 1; got 0 and 3"):
        dimension_shift(0, 3)


@pytest.mark.parametrize("spec", [FlowSpec(), FlowSpec(mean=0.5, std=1.3, shift=3.0)])
def test_training_times_are_logit_normal_and_fall_into_quarters(spec):
    process = spec.build()
    time = process.random_time(keys(4096))
    assert time.dtype == jnp.float32 and time.min() > 0 and time.max() <= 1000
    t = np.asarray(time, np.float64) / 1000
    # The shift adds log s to the logit.
    logit = np.log(t) - np.log1p(-t)
    assert kstest(logit, norm(spec.mean + np.log(spec.shift), spec.std).cdf).pvalue > 1e-3
    quarter = np.asarray(process.quarter(time))
    # The share of a quarter deviates by sqrt(3 / 16 / 4096), 0.007; five deviations.
    np.testing.assert_allclose(np.bincount(quarter, minlength=4) / 4096, 0.25, atol=0.035)
    assert (np.diff(quarter[np.argsort(time)]) >= 0).all()


def test_loss_is_least_at_the_expected_velocity():
    count = 4096
    rng = np.random.default_rng(0)
    x_0, noise = float32(rng.multivariate_normal(MEAN, COVARIANCE, count), rng.normal(size=(count, 3)))
    t, model_fn = PROCESS.random_time(keys(count)), continuous_model(PROCESS)

    @jax.jit
    def mean_loss(shift):
        total, _ = loss(PROCESS, lambda *given: model_fn(*given) + shift, x_0, t, noise, None)
        return total.mean()

    best = float(mean_loss(0.0))
    for shift in (-0.3, 0.3):
        # E L(shift) = E L(0) + shift^2: the cross term averages 12,288 errors of deviation below 1.5; five deviations.
        bound = 5 * 2 * abs(shift) * 1.5 / np.sqrt(3 * count)
        assert abs(float(mean_loss(shift)) - best - shift**2) < bound < shift**2


def test_a_row_and_its_time_are_one_noise_level():
    process = FlowSpec(shift=3.0).build().respace(5)
    rows, times = jnp.arange(5), jnp.asarray(process.time, jnp.float32)
    np.testing.assert_array_equal(process.time_of(rows), times)
    for by_row, by_time in zip(process.levels(rows, 2), process.levels(times, 2), strict=True):
        # 1 - t: an error of t, up to 1.
        np.testing.assert_allclose(by_row, by_time, atol=2 * 2.0**-24)


def test_what_is_refused():
    for fields, line in (
        ({"mean": float("inf")}, "mean must be finite"),
        ({"std": 0.0}, "a flow's std must be positive"),
        ({"shift": -1.0}, "a flow's shift must be positive"),
    ):
        with pytest.raises(ValueError, match=line):
            FlowSpec(**fields)
    for spacing in ("karras", "leading"):
        with pytest.raises(ValueError, match="must be linspace"):
            PROCESS.respace(4, spacing)
    with pytest.raises(ValueError, match="whole number of at least 1; got 0"):
        PROCESS.respace(0)
    with pytest.raises(ValueError, match="set weighting to none, not to min_snr"):
        PROCESS.loss_weight(jnp.ones(2), "min_snr")


def test_is_a_static_pytree():
    assert jax.tree.leaves(PROCESS) == [] and Flow() == PROCESS and PROCESS.respace(3) != PROCESS
    assert hash(PROCESS) == hash(Flow())
