import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.linear_gaussian import COVARIANCE, DIM, MEAN, AffineMap, optimal_x0, recovered_map
from unclip_jax.diffusion import DDIM, DPMSolver, ProcessSpec, Schedule, TapeNoise, sample

SCHEDULES = {"cosine": Schedule.cosine, "linear": Schedule.linear, "sigmoid": Schedule.sigmoid}
TOLERANCE = {"eps": 2e-4, "x0": 5e-6, "v": 5e-6}


def solver_map(alpha_bar, kind, order=2, bounded=True):
    """The paper's step in float64, in its own terms, on the optimal denoiser; lowest noise first."""
    steps = len(alpha_bar)
    # A state is affine in (x_T, z_1, ..., z_S, 1); these are its coefficients.
    x = np.zeros((DIM, DIM * (steps + 1) + 1))
    x[:, :DIM] = np.eye(DIM)
    with np.errstate(divide="ignore"):
        lam = np.append(np.inf, np.log(np.sqrt(alpha_bar)) - np.log(np.sqrt(1 - alpha_bar)))
    last_x_0 = None
    for i, k in enumerate(range(steps, 0, -1)):
        a, a_prev = alpha_bar[k - 1], np.append(1.0, alpha_bar)[k - 1]
        gain, offset = optimal_x0(a)
        x_0 = gain @ x
        x_0[:, -1] += offset
        h, D = lam[k - 1] - lam[k], x_0
        if order == 2 and 1 < k < steps:
            r = (lam[k] - lam[k + 1]) / h
            D = x_0 + (x_0 - last_x_0) / (2 * (1 if bounded and r < 0.5 else r))
        ratio = np.sqrt((1 - a_prev) / (1 - a))
        if kind == "ode":
            x = ratio * x - np.sqrt(a_prev) * (np.exp(-h) - 1) * D
        else:
            x = ratio * np.exp(-h) * x + np.sqrt(a_prev) * (1 - np.exp(-2 * h)) * D
            noise = slice(DIM * (i + 1), DIM * (i + 2))
            x[:, noise] += np.sqrt(1 - a_prev) * np.sqrt(1 - np.exp(-2 * h)) * np.eye(DIM)
        last_x_0 = x_0
    R = x[:, DIM:-1].reshape(DIM, steps, DIM).swapaxes(0, 1)
    return AffineMap(x[:, :DIM], x[:, -1], R)


def flow(alpha_bar):
    """Where the ODE itself leads from the last row, and there the last step's guess of x_0."""
    a, a_T = alpha_bar[[0, -1]]
    values, vectors = np.linalg.eigh(COVARIANCE)
    P = vectors * np.sqrt((a * values + 1 - a) / (a_T * values + 1 - a_T)) @ vectors.T
    gain, offset = optimal_x0(a)
    return AffineMap(gain @ P, gain @ (np.sqrt(a) * MEAN - P @ (np.sqrt(a_T) * MEAN)) + offset, np.zeros((1, DIM, DIM)))


def even_in_lambda(steps):
    return 1 / (1 + np.exp(-2 * np.linspace(4, -4, steps)))


@pytest.mark.parametrize(("schedule", "prediction"), [("cosine", "eps"), ("linear", "v"), ("sigmoid", "x0")])
@pytest.mark.parametrize("kind", ["ode", "sde"])
def test_applies_the_exact_affine_map(schedule, prediction, kind):
    process = ProcessSpec(schedule=schedule, prediction=prediction).build()
    expected = solver_map(process.schedule.respace(40).alpha_bar, kind)
    assert recovered_map(process, DPMSolver(steps=40, kind=kind)).difference(expected) < TOLERANCE[prediction]


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
@pytest.mark.parametrize("kind", ["ode", "sde"])
def test_any_number_of_steps_up_to_the_whole_schedule(steps, kind):
    process = ProcessSpec(num_steps=50, prediction="v").build()
    expected = solver_map(process.schedule.respace(steps).alpha_bar, kind)
    assert recovered_map(process, DPMSolver(steps=steps, kind=kind)).difference(expected) < 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["ode", "sde"])
def test_starts_from_noise_alone(schedule, kind):
    process = ProcessSpec(schedule=schedule, prediction="v", zero_terminal_snr=True).build()
    table = process.schedule.respace(20).alpha_bar
    rows = DPMSolver(steps=20, kind=kind).coefficients(process.respace(20))
    # The second step's last_h is infinite.
    assert all(np.isfinite(column).all() for column in rows.values()) and not rows["last_x_0"][[0, -2, -1]].any()
    found = recovered_map(process, DPMSolver(steps=20, kind=kind))
    assert found.difference(solver_map(table, kind)) < 1e-5
    # As where the schedule all but ends in noise.
    assert found.difference(solver_map(np.append(table[:-1], 1e-14), kind)) < 0.01


def test_the_first_order_is_ddim():
    process = ProcessSpec(prediction="v").build()
    table = process.schedule.respace(20).alpha_bar
    for kind, eta in (("ode", 0.0), ("sde", 1.0)):
        assert recovered_map(process, DDIM(steps=20, eta=eta)).difference(solver_map(table, kind, order=1)) < 1e-5


def test_converges_at_second_order_and_ddim_at_first():
    counts = [20, 40, 80, 160]
    tables = [even_in_lambda(steps) for steps in counts]
    errors = {order: [solver_map(table, "ode", order).difference(flow(table)) for table in tables] for order in (1, 2)}
    for order, found in errors.items():
        rates = np.log2(np.array(found[:-1]) / found[1:])
        assert (abs(rates - order) < 0.3).all(), (order, found)
    assert errors[2][0] < errors[1][2]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["ode", "sde"])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_few_steps_keep_the_moments_of_the_data(schedule, kind, spacing):
    def error(steps, **settings):
        return solver_map(SCHEDULES[schedule](1000).respace(steps, spacing).alpha_bar, kind, **settings).moment_error()

    # Against DDIM and ancestral sampling.
    for steps, share in ((10, 0.55), (20, 0.55), (80, 0.36)):
        assert error(steps) < share * error(steps, order=1), steps
    assert error(80) < 0.025
    if spacing == "linspace":
        assert error(10, bounded=False) > 0.95 * error(10, order=1)
    else:
        assert error(10, bounded=False) == error(10)


def test_the_deterministic_form_ignores_noise_and_a_learned_variance():
    fixed = ProcessSpec(prediction="x0").build()
    learned = ProcessSpec(prediction="x0", variance="learned_range").build()
    found = recovered_map(learned, DPMSolver(steps=10), 0.9)
    assert not found.R.any() and found.difference(recovered_map(fixed, DPMSolver(steps=10))) < 1e-6


def test_extrapolates_the_thresholded_x_0():
    process = ProcessSpec(prediction="x0", num_steps=100).build()

    def model_fn(x_t, t, cond):
        return jnp.where(t == 99, 3.0, 0.25)[:, None] * jnp.ones_like(x_t)

    noise = TapeNoise(x_T=jnp.ones((1, 3)), steps=jnp.zeros((0, 1, 3)))
    _, seen = sample(process, model_fn, None, DPMSolver(steps=5), noise, shape=(1, 3), trajectory=True)
    np.testing.assert_allclose(seen.x_0[:, 0, 0], [1, 0.25, 0.25, 0.25, 0.25])
    a = process.schedule.respace(5).alpha_bar
    lam = np.log(a / (1 - a)) / 2
    D = 0.25 + (lam[2] - lam[3]) / (2 * (lam[3] - lam[4])) * (0.25 - 1)
    ratio = np.sqrt((1 - a[2]) / (1 - a[3]))
    expected = ratio * seen.x_t[1] + np.sqrt(a[2]) * (1 - np.exp(lam[3] - lam[2])) * D
    np.testing.assert_allclose(seen.x_t[2], expected, rtol=1e-5)


def test_is_a_validated_value(unchecked):
    assert hash(DPMSolver(steps=3)) == hash(DPMSolver(steps=3)) != hash(DPMSolver(steps=3, kind="sde"))
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        DPMSolver(steps=0)
    with pytest.raises(ValueError, match="kind must be one of ode, sde; got 'pde'"):
        DPMSolver(steps=3, kind="pde")
