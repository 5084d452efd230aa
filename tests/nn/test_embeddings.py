import jax.numpy as jnp
import numpy as np

from tests.helpers import assert_close
from tests.nn import reference
from unclip_jax.nn.embeddings import TimestepMLP, timestep_embedding

T = np.float32([0, 1, 37, 999])


def sinusoids(t, width):
    frequencies = 10_000.0 ** (-np.arange(width // 2) / (width // 2))
    angles = t[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def test_is_equation_1_cosines_first():
    out = timestep_embedding(jnp.array(T), 16)
    assert out.dtype == jnp.float32
    # The angles, up to 999, are rounded.
    assert_close(out, sinusoids(T, 16), terms=1, size=999)
    np.testing.assert_array_equal(out[0], [1] * 8 + [0] * 8)
    # The slowest sinusoid has period 2 pi 10000^(7/8): no division by d/2 - 1.
    np.testing.assert_allclose(out[1, 15], 10_000 ** (-7 / 8), rtol=1e-4)


def test_neighbouring_steps_are_told_apart():
    out = timestep_embedding(jnp.arange(1000.0), 8)
    assert np.linalg.norm(np.diff(out, axis=0), axis=1).min() > 0.5


def test_mlp_is_dense_silu_dense():
    module = TimestepMLP(embed_width=8, width=6, dtype=jnp.dtype("float32"))
    params = reference.init_random(module, jnp.array(T))
    expected = reference.dense(params["proj"], reference.silu(reference.dense(params["fc"], sinusoids(T, 8))))
    assert_close(reference.apply(module, params, jnp.array(T)), expected, terms=1, size=999)


def test_half_precision_embeds_the_exact_step():
    # 998 and 999 are one number in bfloat16; their sinusoids must not be.
    module = TimestepMLP(embed_width=8, width=6, dtype=jnp.dtype("bfloat16"))
    params = reference.init_random(module, jnp.array(T))
    steps = jnp.array([998.0, 999.0])
    out = reference.apply(module, params, steps)
    assert out.dtype == jnp.bfloat16
    full = reference.apply(TimestepMLP(embed_width=8, width=6, dtype=jnp.dtype("float32")), params, steps)
    np.testing.assert_allclose(np.float32(out), full, atol=0.05)
    assert np.abs(full[0] - full[1]).max() > 0.1
