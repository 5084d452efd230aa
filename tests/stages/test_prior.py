import contextlib
import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.stages.examples import BATCH, conditions, encoders, example, keys, with_condition, with_network
from tests.stages.test_diffusion import assert_share
from unclip_jax.core.errors import UserError
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.training import statistics
from unclip_jax.training.statistics import measure_stats

pytestmark = pytest.mark.usefixtures("quick_compile")

MEASURED, MANY = 48, 4000


@pytest.fixture(scope="module")
def embeddings():
    """z_i of the first examples of a run."""
    return encoders()[0](jnp.asarray(tiny.batch(MEASURED, sizes=(16,))["image_16"]))


def measured(monkeypatch, normalise, source=None, encoder=None):
    monkeypatch.setattr(statistics, "STATS_EXAMPLES", MEASURED)
    spec = BatchSpec(batch_size=16, sizes=(16,), context=tiny.CONTEXT)
    run = functools.partial(batches, source or tiny.records(), tiny.tokenizer(), spec)
    return measure_stats(encoder or tiny.system().encoder("clip"), lambda step: run(start_step=step), normalise)


def test_whitening(monkeypatch, embeddings):
    stats = measured(monkeypatch, "whiten")
    z = stats.normalise(embeddings)
    # float32 of numbers around 1.
    np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(z, axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(stats.denormalise(z), embeddings, atol=1e-6)


def test_scaling(monkeypatch, embeddings):
    stats = measured(monkeypatch, "scale")
    np.testing.assert_array_equal(stats.mean, np.zeros(embeddings.shape[1]))
    assert len(set(np.asarray(stats.std).tolist())) == 1
    np.testing.assert_allclose(np.mean(np.square(stats.normalise(embeddings))), 1, rtol=1e-5)
    # Of unit vectors.
    np.testing.assert_allclose(stats.std, 1 / np.sqrt(embeddings.shape[1]), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 3])
def test_whitening_one_picture(monkeypatch, capsys, copies):
    source = tiny.records()[:1] * copies
    stats = measured(monkeypatch, "whiten", source)
    assert "z_i is the same for all 48 examples measured in 16 of 16 dimensions" in capsys.readouterr().err
    with contextlib.closing(
        batches(source, tiny.tokenizer(), BatchSpec(batch_size=BATCH, sizes=(16,), context=48))
    ) as run:
        batch = jax.tree.map(jnp.asarray, next(run))
    z_i = encoders()[0](batch["image_16"])
    assert np.abs(stats.normalise(z_i)).max() < 0.1
    np.testing.assert_allclose(stats.denormalise(jnp.ones_like(z_i)), z_i, atol=1e-4)
    stage, params, frozen, _ = example("prior")
    assert np.isfinite(jax.jit(stage.loss)(params, params, frozen | {"stats": stats}, batch, keys())[0]).all()


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_embeddings_that_say_nothing_are_refused(monkeypatch, bad):
    clip = tiny.system().encoder("clip")
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, bad), clip.params)
    with pytest.raises(UserError, match="have the mean square .*; give another --clip"):
        measured(monkeypatch, "whiten", encoder=dataclasses.replace(clip, params=params))


def test_cosines_of_a_prior_that_repeats_z_t():
    """Its guess for a caption is the caption's own z_t, and for the shuffled one that of the neighbour."""
    stage, params, frozen, batch = example("prior")
    stage = dataclasses.replace(stage, process=ProcessSpec(num_steps=100, prediction="x0"))

    @jax.jit
    def metrics(frozen, batch, keys):
        def apply(spec, params, x_t, time, cond, dropout_keys=None):
            return frozen["stats"].normalise(cond.z_t)

        with mock.patch.object(PriorSpec, "apply", apply):
            return stage.loss(params, params, frozen, batch, keys)[1]

    found = metrics(frozen, batch, keys())
    encode_image, encode_text = encoders()
    z_i, z_t = np.asarray(encode_image(batch["image_16"])), np.asarray(encode_text(batch["tokens"]).z_t)
    # Of every 16th example: of a batch of 16, the first.
    expected = {"cosine": z_t[0], "cosine_shuffled": z_t[1], "cosine_z_t": z_t[0]}
    for name, guess in expected.items():
        values, weights = found[name]
        np.testing.assert_array_equal(weights, np.arange(BATCH) == 0)
        np.testing.assert_allclose(values[0], guess @ z_i[0], atol=1e-5, err_msg=name)


def test_drop_rate_is_the_configs():
    stage, params, frozen, batch = example("prior")
    stage = with_condition(stage, "caption", drop=0.3)
    repeated = {name: jnp.repeat(x, MANY // BATCH, axis=0) for name, x in batch.items()}
    of_loss, of_cosines = conditions(stage, params, frozen, repeated, keys(MANY))
    assert_share(np.asarray(of_loss.drop_text), 0.3)
    # The cosines ask what captions say, so none is missing there.
    assert not np.asarray(of_cosines.drop_text).any()


def test_an_encoder_of_its_own_reads_tokens():
    stage, params, frozen, batch = example("prior")
    own = with_network(stage, text=frozen["clip"].clip.text_tower)
    for asked, tokens in ((stage, False), (own, True)):
        cond, _ = conditions(asked, params, frozen, batch, keys())
        assert (cond.tokens is not None) == tokens and (cond.hidden is None) == tokens
