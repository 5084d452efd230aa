import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_close
from tests.models import helpers
from tests.models.helpers import PRIOR, TEXT, moved, params_of
from tests.nn import reference
from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.models import prior
from unclip_jax.models.prior import PriorCond, PriorSpec
from unclip_jax.stages.spaces import EmbeddingStats

OWN_TEXT = dataclasses.replace(PRIOR, text=TEXT)
RNG = np.random.default_rng(0)
B, N = 3, PRIOR.context


def normal(*shape):
    return jnp.array(RNG.standard_normal(shape), jnp.float32)


X_T, T = normal(B, 6), jnp.array([3.0, 400.0, 999.0])
# Where a result is compared with one of float64: float32 knows an angle of 999 to 6e-5 only.
EARLY = jnp.array([3.0, 40.0, 99.0])
MASK = jnp.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], bool)
TOKENS = jnp.array([[1, 2, 0, 0, 0], [1, 9, 4, 5, 2], [1, 7, 7, 2, 0]])
DROP = jnp.zeros(B, bool)
COND = PriorCond(z_t=normal(B, 6), mask=MASK, drop_text=DROP, hidden=normal(B, N, 8))
OWN_COND = dataclasses.replace(COND, hidden=None, tokens=TOKENS)
BOTH = pytest.mark.parametrize(("spec", "cond"), [(PRIOR, COND), (OWN_TEXT, OWN_COND)], ids=["hidden", "tokens"])


def run(spec=PRIOR, cond=COND, x_t=X_T, t=T, params=None):
    return helpers.apply(spec, params_of(spec) if params is None else params, x_t, t, cond)


def replace(cond, **changes):
    return dataclasses.replace(cond, **changes)


def other_caption(cond):
    """Another caption of another length."""
    changed = replace(cond, z_t=cond.z_t + 1, mask=cond.mask.at[:, 1:].set(~cond.mask[:, 1:]))
    if cond.tokens is None:
        return replace(changed, hidden=cond.hidden[::-1] + 1)
    return replace(changed, tokens=(cond.tokens + 3) % TEXT.vocab_size)


def sequence_in_numpy(params, cond, drop):
    sinusoids = 10_000.0 ** (-np.arange(8) / 8) * np.asarray(EARLY)[:, None]
    time = np.concatenate([np.cos(sinusoids), np.sin(sinusoids)], axis=1)
    time = reference.dense(params["time"]["proj"], reference.silu(reference.dense(params["time"]["fc"], time)))
    text, z_t = reference.dense(params["text_in"], cond.hidden), reference.dense(params["z_t_in"], cond.z_t)
    text = np.where(drop[:, None, None], params["null_text"], text)
    z_t = np.where(drop[:, None], params["null_z_t"], z_t)
    noised, query = reference.dense(params["z_i_in"], X_T), np.broadcast_to(params["query"], (B, 16))
    return np.concatenate([text, *(each[:, None] for each in (z_t, time, noised, query))], axis=1) + params["positions"]


def test_is_equations_1_and_2():
    params, drop = params_of(PRIOR), np.array([False, False, True])
    x = sequence_in_numpy(params, COND, drop)
    visible = np.concatenate([np.asarray(MASK) | drop[:, None], np.ones((B, 4), bool)], axis=1)
    mask = np.tril(np.ones((N + 4, N + 4), bool)) & visible[:, None, None, :]
    for i in range(PRIOR.num_layers):
        x = reference.block(params["transformer"][f"block_{i}"], x, PRIOR.num_heads, mask)
    expected = reference.dense(params["out"], reference.layer_norm(params["norm_out"], x[:, -1]))
    out = run(cond=replace(COND, drop_text=jnp.array(drop)), t=EARLY)
    assert out.dtype == jnp.float32
    # The rounded angle of the last step, 99, outweighs all that follows.
    assert_close(out, expected, terms=1, size=99)


@BOTH
def test_every_input_has_an_influence(spec, cond):
    out = run(spec, cond)
    assert moved(run(spec, cond, x_t=X_T[::-1]), out)[[0, 2]].min() > 1e-3
    assert moved(run(spec, cond, t=T + 50), out).min() > 1e-3
    assert moved(run(spec, replace(cond, z_t=cond.z_t[:, ::-1])), out).min() > 1e-3
    field = "hidden" if spec.text is None else "tokens"
    first_token = getattr(cond, field).at[:, 0].set(3)
    assert moved(run(spec, replace(cond, **{field: first_token})), out).min() > 1e-3


@BOTH
def test_padding_has_no_influence(spec, cond):
    if spec.text is None:
        padded = replace(cond, hidden=jnp.where(MASK[..., None], cond.hidden, 50.0))
    else:
        padded = replace(cond, tokens=jnp.where(MASK, cond.tokens, 8))
    np.testing.assert_array_equal(run(spec, padded), run(spec, cond))
    # The same change is felt where the mask is open, so it is the mask that hides it.
    unmasked = jnp.ones_like(MASK)
    difference = moved(run(spec, replace(padded, mask=unmasked)), run(spec, replace(cond, mask=unmasked)))
    assert difference[[0, 2]].min() > 1e-3 and difference[1] == 0


@BOTH
def test_dropping_forgets_the_caption_of_that_example_only(spec, cond):
    drop = jnp.array([True, False, True])
    out = run(spec, replace(cond, drop_text=drop))
    other = run(spec, replace(other_caption(cond), drop_text=drop))
    np.testing.assert_array_equal(other[drop], out[drop])
    assert moved(other, out)[1] > 1e-3
    np.testing.assert_array_equal(out[1], run(spec, cond)[1])
    assert moved(out, run(spec, cond))[[0, 2]].min() > 1e-3


@BOTH
def test_null_drops_every_example_and_nothing_else(spec, cond):
    null = cond.null()
    np.testing.assert_array_equal(null.drop_text, [True] * B)
    np.testing.assert_array_equal(run(spec, null), run(spec, replace(cond, drop_text=jnp.ones(B, bool))))
    np.testing.assert_array_equal(run(spec, other_caption(cond).null()), run(spec, null))


def test_z_t_scale_multiplies_z_t_at_the_entrance():
    scaled = run(replace(PRIOR, z_t_scale=4.0), COND, params=params_of(PRIOR))
    # Two blocks of twelve sums over the width, and of attention over the sequence.
    assert_close(scaled, run(cond=replace(COND, z_t=4 * COND.z_t)), terms=2 * (12 * 16 + 3 * (N + 4)))


def test_half_precision_returns_float32_near_full_precision():
    out, half = run(), run(replace(PRIOR, dtype="bfloat16"), params=params_of(PRIOR))
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - out).max() < 0.05 * np.abs(out).max()


@BOTH
def test_gradient_reaches_every_parameter(spec, cond):
    cond = replace(cond, drop_text=jnp.array([True, False, False]))

    def loss(params):
        return jnp.sum(jnp.sin(spec.apply(params, X_T, T, cond)))

    biases = {f"transformer/block_{i}/attention/key/bias" for i in range(spec.num_layers)}
    if spec.text is not None:
        biases.add("text/transformer/block_0/attention/key/bias")
    # A bias of the keys adds the same to all logits of a query, which no softmax sees.
    assert helpers.without_gradient(reference.quick_jit(jax.grad(loss))(params_of(spec))) == biases


def test_embedding_stats_normalise_and_back():
    stats = EmbeddingStats(mean=normal(6), std=jnp.exp(normal(6)))
    z_i = stats.mean + stats.std * X_T
    # z_i of up to 9 is rounded before the mean is taken off, and divided by deviations down to 0.2.
    assert_close(stats.normalise(z_i), X_T, terms=3, size=float(np.abs(z_i / stats.std).max()))
    assert_close(stats.denormalise(X_T), z_i, terms=2)
    # The paper's scaling by 17.2 is a case of it.
    paper = EmbeddingStats(mean=jnp.zeros(6), std=jnp.full(6, 1 / 17.2))
    np.testing.assert_allclose(paper.normalise(X_T), 17.2 * X_T, rtol=1e-5)


@pytest.mark.parametrize(("spec", "cond", "name"), [(PRIOR, OWN_COND, "hidden"), (OWN_TEXT, COND, "tokens")])
def test_a_missing_caption_is_named(spec, cond, name):
    with pytest.raises(ValueError, match=f"cond.{name}, which is None"):
        spec.apply(params_of(spec), X_T, T, cond)


@pytest.mark.parametrize("spec", [PRIOR, OWN_TEXT, prior.paper_prior()])
def test_spec_goes_through_json(spec):
    assert from_json(PriorSpec, to_json(spec)) == spec


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(PRIOR, num_heads=3), "prior: width 16 is not divisible by 3 heads; choose a multiple"),
        (lambda: from_json(PriorSpec, {**to_json(PRIOR), "num_heads": 3}), "config: prior: width 16"),
        (
            lambda: from_json(PriorSpec, {**to_json(OWN_TEXT), "text": {**to_json(TEXT), "num_heads": 3}}),
            "config.text: ",
        ),
        (
            lambda: from_json(PriorSpec, {**to_json(PRIOR), "num_layers": 2.5}),
            "config.num_layers: expected a value of type int",
        ),
    ],
)
def test_invalid_specs(make, message):
    with pytest.raises(UserError, match=message):
        make()
