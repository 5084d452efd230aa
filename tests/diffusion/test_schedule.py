import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.rounded import RoundedSchedule, RoundedSpec
from unclip_jax.diffusion import DDPM, ProcessSpec, Schedule
from unclip_jax.diffusion.process import Spacing

MAKERS = {"cosine": Schedule.cosine, "linear": Schedule.linear, "sigmoid": Schedule.sigmoid}
every_schedule = pytest.mark.parametrize("name", MAKERS)


# First and last values that the PyTorch implementations give for 1000 steps.
@pytest.mark.parametrize(
    ("name", "first_beta", "last_alpha_bar"),
    [("cosine", 4.128e-5, 2.4288e-9), ("linear", 1e-4, 4.036e-5), ("sigmoid", 3.003e-4, 3.00e-7)],
)
def test_known_end_points(name, first_beta, last_alpha_bar):
    schedule = MAKERS[name](1000)
    np.testing.assert_allclose(schedule.beta[0], first_beta, rtol=1e-3)
    np.testing.assert_allclose(schedule.alpha_bar[-1], last_alpha_bar, rtol=2e-3)


def test_cosine_clips_only_its_last_beta():
    beta = Schedule.cosine(1000).beta
    np.testing.assert_allclose(beta[-2:], [0.75, 0.999], rtol=1e-4)


def test_closed_forms_away_from_the_clip():
    u = np.arange(1, 900) / 1000
    cosine = (np.cos((u + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    np.testing.assert_allclose(Schedule.cosine(1000).alpha_bar[:899], cosine, rtol=1e-12)
    # tanh(x / 2) is an affine image of the sigmoid, in which the schedule is odd around its middle.
    sigmoid = (np.tanh(1.5) - np.tanh((6 * u - 3) / 2)) / (2 * np.tanh(1.5))
    np.testing.assert_allclose(Schedule.sigmoid(1000).alpha_bar[:899], sigmoid, rtol=1e-12)
    scaled = (np.tanh(1) - np.tanh((3 * u - 1) / 2)) / (np.tanh(1) + np.tanh(0.5))
    np.testing.assert_allclose(Schedule.sigmoid(1000, -2.0, 4.0, 2.0).alpha_bar[:899], scaled, rtol=1e-12)


@every_schedule
@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000])
def test_tables_are_float64_and_decrease_within_0_and_1(name, num_steps):
    schedule = MAKERS[name](num_steps)
    assert schedule.alpha_bar.dtype == np.float64 and schedule.alpha_bar.shape == (num_steps,)
    assert (np.diff(schedule.alpha_bar) < 0).all() and 0 < schedule.alpha_bar[-1] <= schedule.alpha_bar[0] < 1
    assert schedule.beta.max() <= 0.999 * (1 + 1e-12)
    np.testing.assert_array_equal(schedule.timesteps, np.arange(num_steps))


def test_linear_ends_at_the_same_noise_for_any_number_of_steps():
    ends = [np.log(Schedule.linear(num_steps).alpha_bar[-1]) for num_steps in (500, 1000, 4000)]
    np.testing.assert_allclose(ends, ends[0], rtol=0.02)


@every_schedule
def test_the_first_row_leads_to_the_data(name):
    schedule = MAKERS[name](50).respace(7)
    assert schedule.alpha_bar_prev[0] == 1 and schedule.posterior_variance[0] == 0
    assert schedule.posterior_x_0[0] == 1 and schedule.posterior_x_t[0] == 0
    assert schedule.posterior_log_variance[0] == schedule.posterior_log_variance[1]


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(1, [999]), (2, [0, 999]), (7, [0, 166, 333, 500, 666, 832, 999]), (1000, list(range(1000)))],
)
def test_respace_keeps_rounded_equal_strides(num_steps, expected):
    schedule = Schedule.cosine(1000)
    respaced = schedule.respace(num_steps)
    np.testing.assert_array_equal(respaced.timesteps, expected)
    np.testing.assert_array_equal(respaced.alpha_bar, schedule.alpha_bar[expected])


def test_respace_keeps_distinct_rows_for_every_count():
    schedule = Schedule.linear(60)
    for num_steps in range(1, 61):
        assert len(set(schedule.respace(num_steps).timesteps)) == num_steps


def test_respace_again_names_the_training_steps():
    np.testing.assert_array_equal(Schedule.cosine(101).respace(11).respace(3).timesteps, [0, 50, 100])


@every_schedule
def test_respaced_betas_compose_the_skipped_ones(name):
    schedule = MAKERS[name](40)
    respaced = schedule.respace(6)
    edges = np.append(-1, respaced.timesteps)
    products = [np.prod(1 - schedule.beta[low + 1 : high + 1]) for low, high in itertools.pairwise(edges)]
    np.testing.assert_allclose(1 - respaced.beta, products, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [0, -1, 11, 2.5])
def test_respace_refuses_impossible_counts(unchecked, num_steps):
    with pytest.raises(ValueError, match="steps must be"):
        Schedule.cosine(10).respace(num_steps)


@pytest.mark.parametrize(
    ("spacing", "num_steps", "expected"),
    [
        ("leading", 1, [0]),
        ("leading", 4, [0, 250, 500, 750]),
        ("leading", 7, [142 * i for i in range(7)]),
        ("trailing", 1, [999]),
        ("trailing", 4, [249, 499, 749, 999]),
        ("trailing", 7, [142, 285, 428, 570, 713, 856, 999]),
    ],
)
def test_leading_and_trailing_rows(spacing, num_steps, expected):
    schedule = Schedule.cosine(1000)
    respaced = schedule.respace(num_steps, spacing)
    np.testing.assert_array_equal(respaced.timesteps, expected)
    np.testing.assert_array_equal(respaced.alpha_bar, schedule.alpha_bar[expected])


@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_every_spacing_takes_every_count(spacing):
    schedule = Schedule.sigmoid(60)
    for num_steps in range(1, 61):
        respaced = schedule.respace(num_steps, spacing)
        assert respaced.num_steps == num_steps
        assert (np.diff(respaced.timesteps) >= (spacing != "karras")).all()
        assert respaced.timesteps[0] >= 0 and respaced.timesteps[-1] <= 59
        # Respacing to as many rows, as the sampling loop does, changes nothing.
        assert respaced.respace(num_steps) == respaced


def test_karras_rows_are_even_in_the_seventh_root_of_sigma():
    schedule = Schedule.linear(1000)
    respaced = schedule.respace(12, "karras")
    sigma = np.sqrt(1 / respaced.alpha_bar - 1)
    steps = np.diff(sigma ** (1 / 7))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    np.testing.assert_allclose(respaced.alpha_bar[[0, -1]], schedule.alpha_bar[[0, -1]], rtol=1e-12)
    assert respaced.timesteps[0] == 0 and respaced.timesteps[-1] == 999
    # Each stands for the training step whose noise is nearest, in log sigma.
    distance = abs(np.log(sigma)[:, None] - np.log(1 / schedule.snr) / 2)
    assert (abs(distance.argmin(axis=1) - respaced.timesteps) <= 1).all()
    np.testing.assert_allclose(schedule.respace(1, "karras").alpha_bar, schedule.alpha_bar[-1:], rtol=1e-12)


@every_schedule
def test_zero_terminal_snr_moves_and_scales_the_signal(name):
    schedule = MAKERS[name](1000)
    rescaled = schedule.zero_terminal_snr()
    assert rescaled.alpha_bar[-1] == 0 and rescaled.beta[-1] == 1 and rescaled.snr[-1] == 0
    np.testing.assert_allclose(rescaled.alpha_bar[0], schedule.alpha_bar[0], rtol=1e-14)
    before, after = np.diff(np.sqrt(schedule.alpha_bar)), np.diff(np.sqrt(rescaled.alpha_bar))
    np.testing.assert_allclose(after / before, after[0] / before[0], rtol=1e-6)
    np.testing.assert_array_equal(rescaled.timesteps, schedule.timesteps)


@pytest.mark.parametrize("num_steps", [1, 2, 30])
def test_tables_are_finite_where_the_snr_ends_at_0(num_steps):
    schedule = Schedule.cosine(100).zero_terminal_snr().respace(num_steps)
    assert schedule.alpha_bar[-1] == 0
    for table in ("beta", "snr", "posterior_variance", "posterior_log_variance", "posterior_x_0", "posterior_x_t"):
        assert np.isfinite(getattr(schedule, table)).all(), table
    # Where x_t holds no signal, the posterior is q(x_prev | x_0).
    assert schedule.posterior_x_t[-1] == 0
    np.testing.assert_allclose(schedule.posterior_x_0[-1], np.sqrt(schedule.alpha_bar_prev[-1]), rtol=1e-15)


def test_what_zero_terminal_snr_cannot_do(unchecked):
    with pytest.raises(ValueError, match="at least 2 steps"):
        Schedule.cosine(1).zero_terminal_snr()
    with pytest.raises(ValueError, match="karras spacing has no end where alpha_bar is 0; choose trailing"):
        Schedule.cosine(10).zero_terminal_snr().respace(5, "karras")


def test_unknown_spacings(unchecked):
    with pytest.raises(ValueError, match="spacing must be one of linspace, leading, trailing, karras; got 'even'"):
        Schedule.cosine(10).respace(5, "even")
    with pytest.raises(ValueError, match="UnCLIPScheduler's spacing is linspace; got 'leading'"):
        RoundedSchedule.of(Schedule.cosine(10)).respace(5, "leading")


def test_a_rounded_spec_samples_with_rounded_tables():
    process = RoundedSpec.of(ProcessSpec(variance="learned_range")).build().respace(25)
    assert process.schedule == RoundedSchedule.of(Schedule.cosine(1000)).respace(25)
    assert DDPM(steps=25).coefficients(process)["x_0"][0] < 0.9995 and process.variance == "learned_range"
    with pytest.raises(ValueError, match="is the cosine one"):
        RoundedSpec(schedule="linear")


@every_schedule
def test_a_schedule_needs_a_step(name):
    with pytest.raises(ValueError, match="at least 1"):
        MAKERS[name](0)


@pytest.mark.parametrize("alpha_bar", [[], [0.5, 0.5], [1.0, 0.5], [0.5, 0.0, 0.0], [0.5, -0.1], [0.5, 0.6]])
def test_refuses_tables_that_are_no_schedule(alpha_bar):
    with pytest.raises(ValueError, match="strictly decreasing"):
        Schedule(alpha_bar=np.array(alpha_bar, np.float64), timesteps=np.arange(len(alpha_bar)))


def test_is_a_value():
    schedule = Schedule.cosine(10)
    assert schedule == Schedule.cosine(10) and hash(schedule) == hash(Schedule.cosine(10))
    assert schedule != Schedule.linear(10)
    assert schedule.respace(1) != schedule
    with pytest.raises(ValueError, match="read-only"):
        schedule.alpha_bar[0] = 0.5


def test_does_not_freeze_the_callers_table():
    table = np.array([0.9, 0.5])
    Schedule(alpha_bar=table, timesteps=np.arange(2))
    table[0] = 0.8


def test_passes_through_jit_without_losing_precision():
    schedule = Schedule.cosine(1000)
    # 1 - alpha_bar of the first row, computed from a float32 alpha_bar, would be off by a thousandth.
    value = jax.jit(lambda schedule: jnp.asarray(schedule.snr[0], jnp.float32))(schedule)
    np.testing.assert_allclose(value, schedule.snr[0], rtol=1e-7)
    assert jax.tree.map(lambda leaf: leaf, schedule) == schedule
