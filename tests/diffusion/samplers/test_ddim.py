import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.linear_gaussian import exact_map, recovered_map
from unclip_jax.diffusion import DDIM, DDPM, ProcessSpec, Schedule, TapeNoise, Threshold, sample

SCHEDULES = {"cosine": Schedule.cosine, "linear": Schedule.linear, "sigmoid": Schedule.sigmoid}
TOLERANCE = {"eps": 1e-4, "x0": 3e-6, "v": 3e-6}


def implicit(eta):
    """Direction and noise of the DDIM paper's eq. 12, with eps replaced by what x_t and x_0 imply."""

    def update(a, a_prev):
        sigma = eta * np.sqrt((1 - a_prev) / (1 - a)) * np.sqrt(1 - a / a_prev)
        on_eps = np.sqrt(max(1 - a_prev - sigma**2, 0))
        return np.sqrt(a_prev) - on_eps * np.sqrt(a) / np.sqrt(1 - a), on_eps / np.sqrt(1 - a), sigma

    return update


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_applies_the_exact_affine_map(schedule, prediction, eta):
    process = ProcessSpec(schedule=schedule, prediction=prediction).build()
    expected = exact_map(process.schedule.respace(40).alpha_bar, implicit(eta))
    assert recovered_map(process, DDIM(steps=40, eta=eta)).difference(expected) < TOLERANCE[prediction]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_reaches_the_data_distribution_as_steps_grow(schedule, eta):
    table = SCHEDULES[schedule](1000)
    errors = [exact_map(table.respace(n).alpha_bar, implicit(eta)).moment_error() for n in (25, 100, 400)]
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2 and errors[2] < 0.01
    process = ProcessSpec(schedule=schedule, prediction="x0").build()
    assert recovered_map(process, DDIM(steps=100, eta=eta)).moment_error() < 0.03


def test_eta_1_is_ancestral_sampling_with_the_small_variance():
    process = ProcessSpec(prediction="v").build()
    ddim, ddpm = recovered_map(process, DDIM(steps=20, eta=1.0)), recovered_map(process, DDPM(steps=20))
    assert ddim.difference(ddpm) < 1e-6


def test_eta_0_ignores_the_noise():
    found = recovered_map(ProcessSpec(prediction="x0").build(), DDIM(steps=10))
    assert not found.R.any() and found.P.any()


def test_ignores_a_learned_variance():
    fixed = ProcessSpec(prediction="x0").build()
    learned = ProcessSpec(prediction="x0", variance="learned_range").build()
    sampler = DDIM(steps=10, eta=0.7)
    assert recovered_map(learned, sampler, 0.9).difference(recovered_map(fixed, sampler)) < 1e-6


def test_eps_belongs_to_the_thresholded_x_0():
    process = ProcessSpec(prediction="eps", num_steps=100).build()
    x_T = jnp.array([[2.0, -1.0, 0.1]])
    predicted_eps = jnp.array([[0.5, 0.2, -0.3]])
    _, seen = sample(
        process,
        lambda x_t, t, cond: predicted_eps,
        None,
        DDIM(steps=5),
        TapeNoise(x_T=x_T, steps=jnp.zeros((0, 1, 3))),
        shape=(1, 3),
        threshold=Threshold(kind="static", limit=1.0),
        trajectory=True,
    )
    a, a_prev = process.schedule.respace(5).alpha_bar[[-1, -2]]
    raw = (np.float64(x_T) - np.sqrt(1 - a) * np.float64(predicted_eps)) / np.sqrt(a)
    x_0 = np.clip(raw, -1, 1)
    assert (raw != x_0).any()
    eps = (np.float64(x_T) - np.sqrt(a) * x_0) / np.sqrt(1 - a)
    np.testing.assert_allclose(seen.x_0[0], x_0, rtol=1e-6)
    np.testing.assert_allclose(seen.x_t[1], np.sqrt(a_prev) * x_0 + np.sqrt(1 - a_prev) * eps, rtol=1e-5)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_refuses_eta_outside_0_and_1(eta):
    with pytest.raises(ValueError, match="eta must lie between 0 and 1"):
        DDIM(steps=3, eta=eta)


def test_is_a_validated_value():
    assert hash(DDIM(steps=3)) == hash(DDIM(steps=3)) and DDIM(steps=3) != DDIM(steps=3, eta=0.5)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        DDIM(steps=0)
