"""What RePaint draws of data whose conditional distribution is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.linear_gaussian import COVARIANCE, DIM, MEAN, optimal_model
from unclip_jax.diffusion import DDIM, DDPM, KeyNoise, Schedule, TapeNoise, Threshold, VariancePreserving
from unclip_jax.diffusion.samplers.repaint import DRAWS, Resampling, repaint

PROCESS = VariancePreserving(schedule=Schedule.cosine(1000), prediction="eps")
FREE = Threshold(kind="none")
KNOWN = jnp.array([[True, False, False]])
VALUE = 1.4


def conditional(known, value):
    """Mean and covariance of the other coordinates, given that the known ones are `value`."""
    known = np.asarray(known)[0]
    inside, across = COVARIANCE[np.ix_(known, known)], COVARIANCE[np.ix_(~known, known)]
    gain = across @ np.linalg.inv(inside)
    mean = MEAN[~known] + gain @ (value - MEAN[known])
    return mean, COVARIANCE[np.ix_(~known, ~known)] - gain @ across.T


# A step's true variance is nearer to beta than to the posterior's: the data are not known.
LARGE = DDPM(steps=50, variance="large")


def draw(resampling, sampler=LARGE, count=2**12):
    noise = KeyNoise(key=jax.random.key(0), indices=jnp.arange(count))
    known = jnp.full((count, DIM), VALUE)

    @jax.jit
    def run(noise):
        model_fn = optimal_model(PROCESS)
        options = {"known": known, "is_known": KNOWN, "resampling": resampling, "threshold": FREE}
        return repaint(PROCESS, model_fn, None, sampler, noise, **options)

    return np.asarray(run(noise), np.float64)


def off(x_0):
    """Errors of mean and covariance of the coordinates that are not known."""
    mean, covariance = conditional(KNOWN, VALUE)
    drawn = x_0[:, ~np.asarray(KNOWN)[0]]
    return abs(drawn.mean(0) - mean).max(), abs(np.cov(drawn.T) - covariance).max()


@pytest.mark.slow
def test_mean_and_covariance_are_the_conditional_ones():
    """Within sampling error: three deviations of a mean, and of a variance, over 4096 draws."""
    x_0 = draw(Resampling(jump=5, times=30))
    mean_error, covariance_error = off(x_0)
    variance = conditional(KNOWN, VALUE)[1].max()
    assert mean_error < 3 * np.sqrt(variance / len(x_0))
    assert covariance_error < 3 * variance * np.sqrt(2 / len(x_0))


@pytest.mark.slow
def test_without_going_back_both_sides_do_not_agree():
    """The mean is off by much more than sampling error: what going back is for."""
    mean_error, _ = off(draw(Resampling(times=1)))
    assert mean_error > 0.1


@pytest.mark.parametrize("sampler", [DDPM(steps=7), DDIM(steps=7), DDIM(steps=7, eta=1.0)])
def test_the_known_stays_to_the_bit(sampler):
    x_0 = draw(Resampling(jump=3, times=2), sampler, count=4)
    np.testing.assert_array_equal(x_0[:, 0], np.float32(VALUE))
    assert np.isfinite(x_0).all()


def test_rows():
    evaluated, after = Resampling(jump=2, times=2).rows(5)
    assert evaluated.tolist() == [4, 3, 4, 3, 2, 1, 2, 1, 0, 0]
    assert after.tolist() == [3, 4, 3, 2, 1, 2, 1, 0, 0, -1]
    evaluated, after = Resampling(times=1).rows(4)
    assert evaluated.tolist() == [3, 2, 1, 0] and after.tolist() == [2, 1, 0, -1]


def test_noise_again_is_that_of_the_forward_process():
    """From row t - 1 up to row s, x keeps its variance if it had that of the data at t - 1: none is lost or added."""
    from unclip_jax.diffusion.samplers.repaint import _noising

    evaluated, after = Resampling(jump=4, times=3).rows(20)
    process = PROCESS.respace(20)
    rows = _noising(process, evaluated, after)
    alpha_bar = np.append(process.schedule.alpha_bar, 1.0)
    before, later = process.schedule.alpha_bar_prev[evaluated], alpha_bar[after]
    # Data of variance v: alpha_bar v + 1 - alpha_bar at every row.
    for v in (0.25, 1.0, 4.0):
        at_before = before * v + 1 - before
        np.testing.assert_allclose(
            rows["kept"] ** 2 * at_before + rows["added"] ** 2, later * v + 1 - later, rtol=1e-12
        )


def test_wrong_shapes_are_named(unchecked):
    noise = TapeNoise(x_T=jnp.zeros((2, DIM)), steps=jnp.zeros((DRAWS * 3, 2, DIM)))
    known = jnp.zeros((2, DIM))

    def run(steps, **options):
        model_fn = optimal_model(PROCESS)
        sampler = DDIM(steps=steps)
        return repaint(
            PROCESS, model_fn, None, sampler, noise, known=known, is_known=KNOWN,
            resampling=Resampling(times=1), threshold=FREE, **options
        )  # fmt: skip

    assert run(3).shape == (2, DIM)
    with pytest.raises(ValueError, match="steps have shape"):
        run(4)
    with pytest.raises(ValueError, match=r"x_T has shape \(1, 3\)"):
        run(3, x_T=jnp.zeros((1, DIM)))
    for bad in ({"jump": 0}, {"times": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Resampling(**bad)
