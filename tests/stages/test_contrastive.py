import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages.examples import BATCH, compiled_loss, encoders, example, keys

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def result():
    _, params, frozen, batch = example("clip")
    return compiled_loss("clip")(params, frozen, batch, keys())


def test_loss_written_out(result):
    _, params, _, batch = example("clip")
    encode_image, encode_text = encoders()
    z_i = np.asarray(encode_image(batch["image_16"]), np.float64)
    z_t = np.asarray(encode_text(batch["tokens"]).z_t, np.float64)
    logits = np.exp(min(float(params["logit_scale"]), np.log(100))) * z_i @ z_t.T
    shares = np.exp(logits)
    of_image, of_text = shares / shares.sum(1, keepdims=True), shares / shares.sum(0, keepdims=True)
    expected = -(np.log(np.diag(of_image)) + np.log(np.diag(of_text))) / 2
    # float32 against float64.
    np.testing.assert_allclose(result[0], expected, rtol=1e-4)
    for name, hits in (("image_to_text", logits.argmax(1)), ("text_to_image", logits.argmax(0))):
        np.testing.assert_array_equal(result[1][name][0], hits == np.arange(BATCH))


def test_a_hard_negative_is_one_more_caption_for_its_image(result):
    _, params, frozen, batch = example("clip")
    given = np.arange(BATCH) % 3 == 0
    negative_tokens = jnp.roll(batch["tokens"], 1, axis=0)
    hard = batch | {"negative_tokens": negative_tokens, "has_negative": jnp.asarray(given)}
    loss, metrics = compiled_loss("clip")(params, frozen, hard, keys())
    encode_image, encode_text = encoders()
    z_i = np.asarray(encode_image(batch["image_16"]), np.float64)
    z_t, z_n = (np.asarray(encode_text(t).z_t, np.float64) for t in (batch["tokens"], negative_tokens))
    scale = np.exp(min(float(params["logit_scale"]), np.log(100)))
    logits, negative = scale * z_i @ z_t.T, scale * np.sum(z_i * z_n, axis=1)
    of_image = np.diag(logits) - np.log(np.exp(logits).sum(1) + given * np.exp(negative))
    of_text = np.diag(logits) - np.log(np.exp(logits).sum(0))
    np.testing.assert_allclose(loss, -(of_image + of_text) / 2, rtol=1e-4)
    np.testing.assert_allclose(loss[~given], result[0][~given], rtol=1e-5)
    assert (loss > result[0])[given].all()
    values, weights = metrics["over_negative"]
    np.testing.assert_array_equal(values, np.diag(logits) > negative)
    np.testing.assert_array_equal(weights, given)


def test_pairs_that_are_shuffled_have_another_loss(result):
    _, params, frozen, batch = example("clip")
    shuffled = batch | {"tokens": jnp.roll(batch["tokens"], 1, axis=0)}
    other, _ = compiled_loss("clip")(params, frozen, shuffled, keys())
    assert abs(float(other.mean()) - float(result[0].mean())) > 1e-3


def test_keys_play_no_part(result):
    _, params, frozen, batch = example("clip")
    other, _ = compiled_loss("clip")(params, frozen, batch, keys(seed=1))
    np.testing.assert_array_equal(other, result[0])
