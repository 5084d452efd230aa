import jax
import numpy as np
import pytest

from tests.diffusion.linear_gaussian import (
    AffineMap,
    exact_flow,
    model_of,
    recovered_map,
)
from tests.helpers import count_traces
from unclip_jax.diffusion import (
    DDIM,
    EDMSpec,
    FlowSpec,
    Heun,
    KeyNoise,
    ProcessSpec,
    Schedule,
    VariancePreserving,
    sample,
)

CONTINUOUS = {"edm": EDMSpec().build(), "flow": FlowSpec().build(), "shifted": FlowSpec(shift=3.0).build()}


def discrete(steps):
    """Rows even in log SNR, where methods show their order."""
    alpha_bar = 1 / (1 + np.exp(-2 * np.linspace(4, -4, steps)))
    return VariancePreserving(schedule=Schedule(alpha_bar=alpha_bar, timesteps=np.arange(steps)), prediction="x0")


def error(process, sampler):
    """Against the probability flow itself."""
    rows = process.respace(sampler.steps)
    flow = exact_flow(rows.signal[-1], rows.sigma[-1])
    flow = AffineMap(rows.initial_scale * flow.P, flow.q, flow.R)
    found = recovered_map(process, sampler)
    return max(abs(found.P - flow.P).max(), abs(found.q - flow.q).max())


@pytest.mark.parametrize("kind", [*CONTINUOUS, "discrete"])
@pytest.mark.parametrize(("method", "order"), [(DDIM, 1), (Heun, 2)])
def test_converges_at_its_order(kind, method, order):
    errors = [error(CONTINUOUS.get(kind) or discrete(n), method(steps=n)) for n in (16, 32, 64)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    # At least: the errors of a discrete process, whose last step starts where there is hardly any noise, change sign.
    assert (rates > order - 0.3).all(), errors
    assert order == 2 or (rates < 1.3).all(), errors


def heun_by_hand(process, denoise, x):
    """Algorithm 1 of the EDM paper in numpy, with the derivative along the straight line between two rows."""
    signal, sigma = np.append(0, process.signal)[::-1], np.append(0, process.sigma)[::-1]
    signal[-1] = 1
    for a, s, a_next, s_next in zip(signal[:-1], sigma[:-1], signal[1:], sigma[1:], strict=True):

        def slope(x, a, s, da=a_next - a, ds=s_next - s):
            x_0 = denoise(x, a, s)
            return da * x_0 + ds * (x - a * x_0) / s

        first = slope(x, a, s)
        following = x + first
        if s_next:
            following = x + (first + slope(following, a_next, s_next)) / 2
        x = following
    return x


@pytest.mark.parametrize("kind", [*CONTINUOUS, "discrete"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_is_the_papers_algorithm(kind, steps):
    process = CONTINUOUS.get(kind) or ProcessSpec(prediction="v", num_steps=100).build()
    rows, sampler = process.respace(steps), Heun(steps=steps)
    table, evaluated = sampler.coefficients(rows), sampler.evaluated
    x = last = np.array([0.3, -1.2]) * rows.initial_scale

    def denoise(x, a, s):
        return np.tanh(x / np.hypot(a, s) + 0.1 * s)

    expected = heun_by_hand(rows, denoise, x)
    for k in reversed(range(sampler.evaluations)):
        x_0 = denoise(x, rows.signal[evaluated[k]], rows.sigma[evaluated[k]])
        row = {name: column[k] for name, column in table.items()}
        x, last = row["x_0"] * x_0 + row["x_t"] * x + row["last_x"] * last, x
    np.testing.assert_allclose(x, expected, rtol=1e-9)


def test_order_of_evaluations():
    process, sampler = FlowSpec().build(), Heun(steps=3)
    assert sampler.evaluations == 5 and sampler.evaluated.tolist() == [0, 0, 1, 1, 2] and not sampler.is_stochastic
    times = []

    def model_fn(x, time, cond):
        jax.debug.callback(lambda value: times.append(float(value)), time[0])
        return x

    noise = KeyNoise(key=jax.random.key(0), indices=np.arange(2))
    _, seen = sample(process, model_fn, None, sampler, noise, shape=(2, 3), trajectory=True)
    jax.effects_barrier()
    np.testing.assert_allclose(times, process.respace(3).time[[2, 1, 1, 0, 0]], rtol=1e-6)
    assert seen.x_t.shape == (5, 2, 3)


def test_the_program_holds_one_network_in_one_scan():
    process, sampler = EDMSpec().build(), Heun(steps=4)
    model_fn, traces = count_traces(model_of(process))
    noise = KeyNoise(key=jax.random.key(0), indices=np.arange(2))
    jaxpr = jax.make_jaxpr(lambda noise: sample(process, model_fn, None, sampler, noise, shape=(2, 3)))(noise)
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(traces) == 1 and [scan.params["length"] for scan in scans] == [7]


def test_a_single_step_is_ddim():
    process = ProcessSpec(prediction="v").build().respace(1)
    table = Heun(steps=1).coefficients(process)
    for name, column in DDIM(steps=1).coefficients(process).items():
        np.testing.assert_array_equal(table.get(name, column), column)


def test_is_a_validated_value(unchecked):
    assert hash(Heun(steps=3)) == hash(Heun(steps=3)) and Heun(steps=3) != Heun(steps=4)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        Heun(steps=0)
