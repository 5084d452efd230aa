import dataclasses

import numpy as np
import pytest

from tests.diffusion.linear_gaussian import exact_map, recovered_map
from unclip_jax.diffusion import DDPM, ProcessSpec, Schedule

SCHEDULES = {"cosine": Schedule.cosine, "linear": Schedule.linear, "sigmoid": Schedule.sigmoid}
# On the way from eps to x_0, at the cosine's last row, rounding is amplified 20,000 times.
TOLERANCE = {"eps": 1e-4, "x0": 3e-6, "v": 3e-6}


def ancestral(fraction):
    """The posterior by precision weights, with a variance `fraction` of the way to beta, in logs."""

    def update(a, a_prev):
        if a_prev == 1:
            return 1.0, 0.0, 0.0
        alpha = a / a_prev
        variance = 1 / (alpha / (1 - alpha) + 1 / (1 - a_prev))
        scale = np.sqrt((1 - alpha) ** fraction * variance ** (1 - fraction))
        return variance * np.sqrt(a_prev) / (1 - a_prev), variance * np.sqrt(alpha) / (1 - alpha), scale

    return update


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(
    ("variance", "channel", "fraction"),
    [("small", 0.0, 0.0), ("large", 0.0, 1.0), ("learned_range", 0.5, 0.75)],
)
def test_applies_the_exact_affine_map(schedule, prediction, variance, channel, fraction):
    process = ProcessSpec(schedule=schedule, prediction=prediction, variance=variance).build()
    expected = exact_map(process.schedule.respace(40).alpha_bar, ancestral(fraction))
    found = recovered_map(process, DDPM(steps=40), channel)
    assert found.difference(expected) < TOLERANCE[prediction]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reaches_the_data_distribution_as_steps_grow(schedule):
    table = SCHEDULES[schedule](1000)
    for fraction in (0.0, 1.0):
        errors = [exact_map(table.respace(n).alpha_bar, ancestral(fraction)).moment_error() for n in (50, 200, 800)]
        assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2 and errors[2] < 0.01
    process = ProcessSpec(schedule=schedule, prediction="x0").build()
    assert recovered_map(process, DDPM(steps=200)).moment_error() < 0.03


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_any_number_of_steps_up_to_the_whole_schedule(steps):
    process = ProcessSpec(num_steps=50, prediction="v").build()
    expected = exact_map(process.schedule.respace(steps).alpha_bar, ancestral(0.0))
    assert recovered_map(process, DDPM(steps=steps)).difference(expected) < 1e-5


def test_a_fixed_variance_overrides_a_learned_one():
    learned = ProcessSpec(num_steps=50, prediction="x0", variance="learned_range").build()
    for variance in ("small", "large"):
        fixed = dataclasses.replace(learned, variance=variance)
        overridden = recovered_map(learned, DDPM(steps=5, variance=variance), 0.3)
        assert overridden.difference(recovered_map(fixed, DDPM(steps=5))) < 1e-6
        # The other way round too: the override wins over a process of the other fixed kind.
        assert (
            recovered_map(fixed, DDPM(steps=5, variance="small")).difference(
                recovered_map(fixed, DDPM(steps=5, variance="large"))
            )
            > 0.01
        )


def test_is_a_validated_value(unchecked):
    assert hash(DDPM(steps=3)) == hash(DDPM(steps=3)) and DDPM(steps=3) != DDPM(steps=4)
    for steps in (0, -1):
        with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
            DDPM(steps=steps)
    with pytest.raises(ValueError, match="variance must be one of process, small, large"):
        DDPM(steps=3, variance="learned_range")
