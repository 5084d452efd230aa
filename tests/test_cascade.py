import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unclip_jax import cascade
from unclip_jax.cascade import default_settings, draw_embedding, draw_image, stages_until
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.diffusion.noise import KeyNoise
from unclip_jax.models import clip
from unclip_jax.stages.settings import StageSettings

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPTS = ["a red circle", "a blue square above a green star", "two rings"]
PROGRAMS = (cascade._prior_program, cascade._decoder_program, cascade._upsampler_program)


def encoded(prompts):
    rows = tiny.tokenizer().encode(prompts, tiny.CONTEXT)
    return jnp.asarray(rows.tokens), jnp.asarray(rows.mask)


def run(prompts=PROMPTS, seed=0, **options):
    """{part: what it made}"""
    drawn = cascade.cascade(tiny.bundle(), *encoded(prompts), jax.random.key(seed), **options)
    return {one.part: np.asarray(one.value) for one in drawn}


@pytest.fixture(scope="module")
def drawn():
    return run()


def compiled():
    return [stage.compiled._cache_size() for stage in PROGRAMS]


def test_every_stage_in_order(drawn):
    assert list(drawn) == ["prior", "decoder", "upsampler_0"]
    assert [value.shape for value in drawn.values()] == [(3, 16), (3, 8, 8, 3), (3, 16, 16, 3)]
    np.testing.assert_allclose(np.linalg.norm(drawn["prior"], axis=1), 1, rtol=1e-5)
    for name in ("decoder", "upsampler_0"):
        assert np.abs(drawn[name]).max() <= 1 and drawn[name].std() > 0.1


def test_another_request_compiles_nothing(drawn):
    before = compiled()
    other = run(["a cat", "a dog", ""], seed=7, indices=jnp.arange(5, 8))
    assert compiled() == before
    assert all((other[name] != drawn[name]).any() for name in drawn)


def test_same_request_same_images(drawn):
    again = run()
    for name, value in drawn.items():
        np.testing.assert_array_equal(again[name], value)


def test_another_seed_another_image(drawn):
    other = run(seed=1)
    assert all(np.abs(other[name] - drawn[name]).max() > 0.1 for name in drawn)


def test_same_prompt_other_number_other_image():
    same = run([PROMPTS[0]] * 3)
    assert all(np.abs(value[0] - value[1]).max() > 0.1 for value in same.values())


def test_image_does_not_depend_on_its_neighbours(drawn):
    other = run([PROMPTS[0], "a cat", "a dog"])
    for name, value in drawn.items():
        np.testing.assert_array_equal(other[name][0], value[0])
        assert (other[name][1] != value[1]).any()


def test_image_keeps_its_number_in_another_batch(drawn):
    """Rows 2 and 1 in a batch of two: another program, whose sums may round otherwise."""
    other = run([PROMPTS[2], PROMPTS[1]], indices=jnp.asarray([2, 1]))
    for name, value in drawn.items():
        np.testing.assert_allclose(other[name], value[[2, 1]], atol=1e-5)


def test_guidance_changes_the_image(drawn):
    noise = KeyNoise(key=jax.random.fold_in(jax.random.key(0), cascade.DECODER_STREAM), indices=jnp.arange(3))
    how = default_settings(tiny.bundle())["decoder"]
    z_i, (tokens, mask) = jnp.asarray(drawn["prior"]), encoded(PROMPTS)
    assert how.guidance_scale == 2
    np.testing.assert_array_equal(draw_image(tiny.bundle(), z_i, tokens, mask, noise, how), drawn["decoder"])
    unguided = dataclasses.replace(how, guidance_scale=1.0)
    other = draw_image(tiny.bundle(), z_i, tokens, mask, noise, unguided)
    assert np.abs(np.asarray(other) - drawn["decoder"]).max() > 0.01


def test_the_candidate_nearest_to_the_caption_is_kept():
    bundle, count = tiny.bundle(), 4
    tokens, mask = encoded(PROMPTS)
    settings = default_settings(bundle)
    key = jax.random.fold_in(jax.random.key(0), cascade.PRIOR_STREAM)
    several = dataclasses.replace(settings["prior"], num_candidates=count)
    chosen = next(cascade.cascade(bundle, tokens, mask, jax.random.key(0), settings={"prior": several}))

    noise = KeyNoise(key=key, indices=jnp.arange(3 * count))
    repeated = [jnp.repeat(x, count, axis=0) for x in (tokens, mask)]
    z_i = np.asarray(draw_embedding(bundle, *repeated, noise, settings["prior"])).reshape(3, count, -1)
    part = bundle.part("clip")
    z_t = np.asarray(clip.encode_text(part.spec, part.params, tokens).z_t)
    cosines = np.einsum("bcd,bd->bc", z_i, z_t)
    best = cosines.argmax(1)
    assert len(set(best.tolist())) > 1 and (cosines.max(1) - cosines.min(1) > 1e-3).all()
    np.testing.assert_allclose(chosen.value, z_i[np.arange(3), best], atol=1e-5)


def test_stops_at_a_size(drawn):
    partial = run(stop_at=8)
    assert list(partial) == ["prior", "decoder"]
    np.testing.assert_array_equal(partial["decoder"], drawn["decoder"])
    assert stages_until(tiny.bundle(), 16) == stages_until(tiny.bundle(), None)


def test_a_size_that_no_stage_makes():
    with pytest.raises(UserError, match="^stop_at is 9; bundle tiny makes 8, 16 px$"):
        run(stop_at=9)


@pytest.mark.parametrize("missing", ["clip", "prior", "decoder"])
def test_a_cascade_needs_its_parts(missing, tiny_bundle):
    parts = {name: part for name, part in tiny_bundle.parts.items() if name != missing}
    with pytest.raises(UserError, match=f"bundle tiny has no {missing}, only"):
        stages_until(dataclasses.replace(tiny_bundle, parts=parts), None)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("steps", 0, "steps is 0; choose 1 to 100"),
        ("steps", 101, "steps is 101; choose 1 to 100"),
        ("guidance_scale", -0.1, "guidance_scale is -0.1; choose 0 to 100, 1 for no guidance"),
        ("guidance_scale", 101.0, "guidance_scale is 101.0; choose 0 to 100"),
        ("guidance_scale", float("nan"), "guidance_scale is nan; choose 0 to 100"),
        ("guidance_scale", float("inf"), "guidance_scale is inf; choose 0 to 100"),
        ("eta", 1.1, "eta is 1.1; choose 0 to 1"),
        ("eta", float("nan"), "eta is nan; choose 0 to 1"),
        ("guidance_rescale", -1.0, "guidance_rescale is -1.0; choose 0 to 1"),
        ("num_candidates", 0, "num_candidates is 0; choose 1 to 64"),
        ("num_candidates", 65, "num_candidates is 65; choose 1 to 64"),
    ],
)
@pytest.mark.parametrize("part", ["prior", "decoder", "upsampler_0"])
def test_settings_out_of_range(part, field, value, line):
    settings = default_settings(tiny.bundle())
    settings[part] = dataclasses.replace(settings[part], **{field: value})
    # Before anything is drawn.
    with pytest.raises(UserError, match=f"^{part}: {line}"):
        next(cascade.cascade(tiny.bundle(), *encoded(PROMPTS), jax.random.key(0), settings=settings))


def test_bounds_themselves_are_allowed():
    process = ProcessSpec(num_steps=100)
    StageSettings(steps=100, guidance_scale=0.0, eta=1.0, guidance_rescale=1.0, num_candidates=64).check("x", process)
    StageSettings(steps=1, guidance_scale=100.0, num_candidates=1).check("x", process)


def test_default_settings_are_the_bundles(tiny_bundle):
    settings = default_settings(tiny_bundle)
    assert settings["prior"] == StageSettings(steps=3)
    assert settings["decoder"] == StageSettings(steps=3, guidance_scale=2.0)
    assert default_settings(dataclasses.replace(tiny_bundle, sampling={}))["prior"] == StageSettings()


def test_settings_of_an_unknown_part():
    with pytest.raises(UserError, match="settings for decodr, .*did you mean 'decoder'"):
        run(settings={"decodr": StageSettings()})
