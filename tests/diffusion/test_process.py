"""What discrete processes share with continuous ones, and that it is the same numbers as in their own terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion import (
    DDIM,
    DDPM,
    AnalyticDPM,
    DPMSolver,
    EDMSpec,
    FlowSpec,
    Process,
    ProcessSpec,
    X0Variance,
    invert,
)

SPECS = [
    ProcessSpec(schedule="cosine"),
    ProcessSpec(schedule="linear", prediction="v", zero_terminal_snr=True),
    ProcessSpec(schedule="sigmoid", prediction="x0"),
]
STEPS = [1, 2, 50, 1000]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("steps", STEPS)
def test_discrete_tables_are_computed_from_alpha_bar_bit_for_bit(spec, steps):
    process = spec.build().respace(steps)
    a = process.schedule.alpha_bar
    a_prev = np.append(1.0, a[:-1])
    equal = np.testing.assert_array_equal
    equal(process.signal, np.sqrt(a))
    equal(process.sigma, np.sqrt(1 - a))
    equal(process.time, process.schedule.timesteps)
    for eta in (0.0, 0.3, 1.0):
        sigma = eta * np.sqrt((1 - a / a_prev) * (1 - a_prev) / (1 - a))
        x_t = np.sqrt(np.maximum(1 - a_prev - sigma**2, 0) / (1 - a))
        found = DDIM(steps=steps, eta=eta).coefficients(process)
        equal(found["noise"], sigma)
        equal(found["x_t"], x_t)
        equal(found["x_0"], np.sqrt(a_prev) - x_t * np.sqrt(a))
    with np.errstate(divide="ignore"):
        h = -np.diff(np.log(a / (1 - a)) / 2)
    w = np.zeros(steps)
    w[1:-1] = h[:-1] / (2 * h[1:])
    w[w > 1] = 0.5
    first = DDIM(steps=steps).coefficients(process)["x_0"]
    equal(DPMSolver(steps=steps).coefficients(process)["x_0"], (1 + w) * first)
    equal(DPMSolver(steps=steps).coefficients(process)["last_x_0"], -w * first)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("steps", STEPS)
def test_the_general_formulas_hold_for_discrete_processes(spec, steps):
    process = spec.build().respace(steps)
    rows = np.arange(steps)
    for name in ("signal_power", "noise_power", "snr"):
        general = getattr(Process, name).fget(process)
        # Of alpha_bar near 1 a difference of two numbers of size 1 is left, down to 4e-5: 2^-53 / 4e-5 of it is lost.
        np.testing.assert_allclose(general, getattr(process, name), rtol=1e-11)
    kept, added = Process.transition(process, rows - 1, rows)
    own_kept, own_added = process.transition(rows - 1, rows)
    np.testing.assert_allclose(kept, own_kept, rtol=1e-12)
    # A difference of numbers up to 1.
    np.testing.assert_allclose(added, own_added, atol=1e-14)
    np.testing.assert_allclose(Process.posterior_variance.fget(process), process.posterior_variance, atol=1e-14)


def test_discrete_training_times_are_the_draws_of_each_key():
    process = ProcessSpec(num_steps=100).build()
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(40))
    t = process.random_time(keys)
    assert t.dtype == jnp.int32
    np.testing.assert_array_equal(t, [jax.random.randint(key, (), 0, 100) for key in keys])
    np.testing.assert_array_equal(process.quarter(jnp.arange(100)), np.arange(100) // 25)


@pytest.mark.parametrize("process", [EDMSpec().build().respace(4), FlowSpec().build().respace(4)])
def test_what_is_variance_preserving_alone_refuses_others(process):
    statistic = X0Variance(alpha_bar=(0.5,), variance=(0.1,))
    x_0, rows = jnp.zeros((2, 3)), np.array([0, 1])
    name = type(process).__name__
    for what, call in (
        ("DDPM", lambda: DDPM(steps=4).coefficients(process)),
        ("Analytic-DPM", lambda: AnalyticDPM(steps=4, x0_variance=statistic).coefficients(process)),
        ("DDIM's inversion", lambda: invert(process, lambda x, t, c: x, None, DDIM(steps=4), x_0)),
        ("x0_variance", lambda: X0Variance.of(process, rows, np.zeros((2, 2)))),
    ):
        with pytest.raises(ValueError, match=f"^{what} needs a variance-preserving process; got {name}; use DDIM"):
            call()
