import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.linear_gaussian import COVARIANCE, MEAN, optimal_model
from tests.helpers import assert_trees_equal, count_traces
from unclip_jax.diffusion import DDIM, DDPM, DPMSolver, Guidance, KeyNoise, ProcessSpec, TapeNoise, Threshold, sample

NO_THRESHOLD = Threshold(kind="none")
SAMPLERS = [DDPM(steps=6), DDIM(steps=6), DDIM(steps=6, eta=0.5), DPMSolver(steps=6), DPMSolver(steps=6, kind="sde")]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shift:
    shift: jax.Array

    def null(self):
        return Shift(jnp.zeros_like(self.shift))


def key_noise(seed=0, indices=range(4)):
    return KeyNoise(key=jax.random.key(seed), indices=jnp.array(list(indices)))


def drawn_tape(shape, steps):
    """Noise that compiles faster than a key's."""
    noise = np.random.default_rng(0).normal(size=(steps + 1, *shape)).astype(np.float32)
    return TapeNoise(x_T=jnp.asarray(noise[0]), steps=jnp.asarray(noise[1:]))


def squash(x_t, t, cond):
    """Any network will do: it depends on everything it is given."""
    return jnp.tanh(x_t + cond["shift"] + t[:, None, None, None] / 1000)


def run_jitted(process, model_fn, sampler, shape, **settings):
    @jax.jit
    def run(noise, cond):
        return sample(process, model_fn, cond, sampler, noise, shape=shape, **settings)

    return run


def test_draws_from_the_data_distribution():
    process = ProcessSpec(prediction="v").build()
    run = run_jitted(process, optimal_model(process), DDPM(steps=100), (4096, 3), threshold=NO_THRESHOLD)
    x_0 = np.asarray(run(key_noise(indices=range(4096)), None))
    np.testing.assert_allclose(x_0.mean(0), MEAN, atol=0.05)
    np.testing.assert_allclose(np.cov(x_0.T), COVARIANCE, atol=0.06)


@pytest.mark.slow
def test_an_example_does_not_depend_on_its_batch():
    process = ProcessSpec(prediction="v").build()
    shift = jnp.linspace(-1, 1, 6).reshape(6, 1, 1, 1)

    def run(rows):
        noise = key_noise(indices=rows)
        shape = (len(rows), 4, 4, 3)
        return run_jitted(process, squash, DDPM(steps=6), shape)(noise, {"shift": shift[jnp.array(rows)]})

    together = run([0, 1, 2, 3, 4, 5])
    apart = jnp.concatenate([run([0, 1]), run([2, 3, 4, 5])])
    np.testing.assert_allclose(together, apart, atol=1e-6)
    assert abs(together[0] - together[1]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if sampler.is_stochastic])
def test_a_tape_replays_a_key_bit_for_bit(sampler):
    process, shape, cond = ProcessSpec(prediction="eps").build(), (4, 4, 4, 3), {"shift": 0.1}
    run = run_jitted(process, squash, sampler, shape)
    tape = jax.jit(lambda noise: TapeNoise.record(noise, shape, sampler.steps))(key_noise())
    expected = run(key_noise(), cond)
    np.testing.assert_array_equal(run(tape, cond), expected)
    assert (run(key_noise(seed=1), cond) != expected).any()


def test_compiles_once_and_traces_the_model_once():
    process = ProcessSpec().build()
    model_fn, traces = count_traces(squash)
    run = run_jitted(process, model_fn, DDPM(steps=7), (4, 2, 2, 1))
    first, second = run(key_noise(0), {"shift": 0.0}), run(key_noise(1), {"shift": 1.0})
    assert (first != second).any()
    assert len(traces) == 1


@pytest.mark.parametrize(("sampler", "kept"), [(DDIM(steps=6), 1), (DDPM(steps=6), 1), (DPMSolver(steps=6), 2)])
def test_only_multistep_samplers_keep_x_0(sampler, kept):
    run = run_jitted(ProcessSpec().build(), squash, sampler, (4, 2, 2, 1))
    (program,) = jax.make_jaxpr(run)(drawn_tape((4, 2, 2, 1), 6), {"shift": 0.0}).eqns
    (scan,) = [eqn for eqn in program.params["jaxpr"].eqns if eqn.primitive.name == "scan"]
    assert scan.params["num_carry"] == kept


@pytest.mark.parametrize("num_steps", [1, 4, 25])
def test_the_model_sees_training_steps_and_images_as_float32(num_steps):
    process = ProcessSpec(prediction="x0").build()

    def model_fn(x_t, t, cond):
        assert t.dtype == jnp.float32 and t.shape == (2,) and x_t.dtype == jnp.float32
        assert cond == ("anything", [None])
        return jnp.broadcast_to(t[:, None].astype(jnp.float32), x_t.shape)

    x_0, seen = sample(
        process,
        model_fn,
        ("anything", [None]),
        DDIM(steps=num_steps),
        drawn_tape((2, 3), 0),
        shape=(2, 3),
        x_T=jnp.ones((2, 3), jnp.bfloat16),
        threshold=NO_THRESHOLD,
        trajectory=True,
    )
    expected = np.round(np.linspace(999, 0, num_steps))
    np.testing.assert_array_equal(seen.x_0[:, 1, 2], expected)
    np.testing.assert_array_equal(x_0, np.full((2, 3), expected[-1]))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_arithmetic_is_float32_under_a_bfloat16_model(sampler):
    process = ProcessSpec(prediction="x0", variance="learned_range").build()
    # A limit that bfloat16 cannot hold.
    settings = {"threshold": Threshold(limit=0.3), "trajectory": True}

    def half(x_t, t, cond):
        assert x_t.dtype == jnp.float32
        return jnp.concatenate([squash(x_t, t, cond), x_t], axis=-1).astype(jnp.bfloat16)

    def widened(x_t, t, cond):
        return half(x_t, t, cond).astype(jnp.float32)

    shape = (4, 4, 4, 3)
    runs = [run_jitted(process, model_fn, sampler, shape, **settings) for model_fn in (half, widened)]
    outputs = [run(drawn_tape(shape, 6), {"shift": 0.0}) for run in runs]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(outputs))
    assert_trees_equal(*outputs)


def test_trajectory_starts_at_x_T_and_ends_at_x_0():
    process = ProcessSpec(prediction="v").build()
    shape = (4, 2, 2, 1)
    run, noise = functools.partial(run_jitted, process, squash, DDPM(steps=5), shape), drawn_tape(shape, 5)
    x_0, seen = run(trajectory=True)(noise, {"shift": 0.2})
    assert seen.x_t.shape == seen.x_0.shape == (5, 4, 2, 2, 1)
    np.testing.assert_array_equal(seen.x_t[0], noise.initial(shape))
    np.testing.assert_array_equal(seen.x_0[-1], x_0)
    np.testing.assert_allclose(run()(noise, {"shift": 0.2}), x_0, atol=1e-6)


def test_a_given_x_T_replaces_the_noise_sources():
    process = ProcessSpec(prediction="x0").build()
    x_T = jnp.full((4, 2, 2, 1), 0.7)
    _, seen = sample(
        process,
        squash,
        {"shift": 0.0},
        DDIM(steps=2),
        drawn_tape(x_T.shape, 0),
        shape=x_T.shape,
        x_T=x_T,
        trajectory=True,
    )
    np.testing.assert_array_equal(seen.x_t[0], x_T)


def test_threshold_applies_at_every_step():
    process = ProcessSpec(prediction="x0").build()

    def loud(x_t, t, cond):
        return 3 * jnp.sign(x_t)

    run = functools.partial(run_jitted, process, loud, DDPM(steps=4), (4, 3))
    for threshold, largest in (
        (None, 1),
        (Threshold(limit=2.0), 2),
        (NO_THRESHOLD, 3),
        (Threshold(kind="dynamic"), 1),
    ):
        settings = {} if threshold is None else {"threshold": threshold}
        _, seen = run(trajectory=True, **settings)(drawn_tape((4, 3), 4), None)
        np.testing.assert_allclose(abs(seen.x_0), largest, rtol=1e-6)


def test_guidance_moves_samples_and_works_inside_the_loop():
    process = ProcessSpec(prediction="x0").build()

    def mean_model(x_t, t, cond):
        return jnp.broadcast_to(cond.shift, x_t.shape)

    guided = Guidance(scale=3.0).wrap(process, mean_model)
    run = run_jitted(process, guided, DDIM(steps=3), (4, 2), threshold=NO_THRESHOLD)
    np.testing.assert_allclose(run(drawn_tape((4, 2), 0), Shift(jnp.full((4, 1), 0.5))), 1.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "noise", "settings", "message"),
    [
        (DDPM(steps=11), key_noise(), {}, "steps must be at most the schedule's 10"),
        (DDPM(steps=2), key_noise(indices=[0]), {}, "one index per example"),
        (
            DDPM(steps=2),
            TapeNoise(x_T=jnp.ones((4, 3)), steps=jnp.ones((3, 4, 3))),
            {},
            "tape's steps have shape",
        ),
        (
            DDIM(steps=2),
            TapeNoise(x_T=jnp.ones((4, 2)), steps=jnp.ones((2, 4, 2))),
            {},
            "tape's x_T has shape",
        ),
        (DDIM(steps=2), key_noise(), {"x_T": jnp.ones((4, 5))}, "x_T has shape"),
    ],
)
def test_refuses_what_does_not_fit(sampler, noise, settings, message):
    process = ProcessSpec(num_steps=10).build()
    with pytest.raises(ValueError, match=message):
        sample(process, squash, None, sampler, noise, shape=(4, 3), **settings)


def test_a_deterministic_sampler_needs_only_the_tapes_x_T():
    process = ProcessSpec(num_steps=10, prediction="x0").build()
    tape = TapeNoise(x_T=jnp.ones((2, 3)), steps=jnp.zeros((0, 2, 3)))
    result = sample(process, lambda x_t, t, cond: x_t / 2, None, DDIM(steps=3), tape, shape=(2, 3))
    assert np.isfinite(result).all()
