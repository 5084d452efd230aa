import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.models.base import Network
from unclip_jax.stages import compiled
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.stage import Stage
from unclip_jax.systems import unclip
from unclip_jax.systems.system import run as run_system

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPTS = ["a red circle", "a blue square above a green star", "two rings"]


def encoded(prompts):
    rows = tiny.tokenizer().encode(prompts, tiny.CONTEXT)
    return {"tokens": jnp.asarray(rows.tokens), "mask": jnp.asarray(rows.mask)}


def run(prompts=PROMPTS, seed=0, given=None, system=None, **options):
    """{stage: what it made}"""
    inputs = encoded(prompts) | (given or {})
    outputs = run_system(system or tiny.system(), inputs, jax.random.key(seed), **options)
    return {one.stage: np.asarray(one.value) for one in outputs}


@pytest.fixture(scope="module")
def drawn():
    return run()


def test_every_stage_in_order(drawn):
    assert list(drawn) == ["prior", "decoder", "upsampler_0"]
    assert [value.shape for value in drawn.values()] == [(3, 16), (3, 8, 8, 3), (3, 16, 16, 3)]
    np.testing.assert_allclose(np.linalg.norm(drawn["prior"], axis=1), 1, rtol=1e-5)
    for name in ("decoder", "upsampler_0"):
        assert np.abs(drawn[name]).max() <= 1 and drawn[name].std() > 0.1


def test_another_request_compiles_nothing(drawn):
    before = compiled.num_compilations()
    other = run(["a cat", "a dog", ""], seed=7, indices=jnp.arange(5, 8))
    assert compiled.num_compilations() == before
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


@pytest.mark.slow
def test_image_keeps_its_number_in_another_batch(drawn):
    """Rows 2 and 1 in a batch of two: another program, whose sums may round otherwise."""
    other = run([PROMPTS[2], PROMPTS[1]], indices=jnp.asarray([2, 1]))
    for name, value in drawn.items():
        np.testing.assert_allclose(other[name], value[[2, 1]], atol=1e-5)


def test_it_starts_after_what_is_given(drawn):
    from_z_i = run(given={"z_i": jnp.asarray(drawn["prior"])})
    assert list(from_z_i) == ["decoder", "upsampler_0"]
    from_pixels = run(given={"image_8": jnp.asarray(drawn["decoder"])})
    assert list(from_pixels) == ["upsampler_0"]
    for some in (from_z_i, from_pixels):
        np.testing.assert_array_equal(some["upsampler_0"], drawn["upsampler_0"])


def test_streams_of_noise_are_the_stages_own(drawn):
    """What a picture is depends on these numbers: they are part of the format."""
    assert tiny.system().streams == {"prior": 0, "decoder": 1, "upsampler_0": 2}
    assert unclip.streams(["upsampler_10"]) == {"upsampler_10": 12}
    moved = dataclasses.replace(tiny.system(), streams=tiny.system().streams | {"upsampler_0": 3})
    other = run(system=moved)
    np.testing.assert_array_equal(other["decoder"], drawn["decoder"])
    assert np.abs(other["upsampler_0"] - drawn["upsampler_0"]).max() > 0.1


@pytest.mark.slow
def test_guidance_changes_the_image(drawn):
    settings = tiny.system().settings([])["decoder"]
    assert settings.guidance_scale == 2
    given = {"z_i": jnp.asarray(drawn["prior"])}
    unguided = {"decoder": dataclasses.replace(settings, guidance_scale=1.0)}
    other = run(given=given, settings=unguided, until="decoder")
    assert np.abs(other["decoder"] - drawn["decoder"]).max() > 0.01


@pytest.mark.slow
def test_the_candidate_nearest_to_the_caption_is_kept():
    count = 4
    settings = tiny.system().settings([])["prior"]
    several = dataclasses.replace(settings, num_candidates=count)
    chosen = run(settings={"prior": several}, until="prior")["prior"]

    repeated = [prompt for prompt in PROMPTS for _ in range(count)]
    z_i = run(repeated, until="prior")["prior"].reshape(3, count, -1)
    z_t = np.asarray(tiny.system().encoder("clip").encode_text(encoded(PROMPTS)["tokens"]).z_t)
    cosines = np.einsum("bcd,bd->bc", z_i, z_t)
    best = cosines.argmax(1)
    assert len(set(best.tolist())) > 1 and (cosines.max(1) - cosines.min(1) > 1e-3).all()
    np.testing.assert_allclose(chosen, z_i[np.arange(3), best], atol=1e-5)


@pytest.mark.slow
def test_stops_at_a_stage(drawn):
    partial = run(until="decoder")
    assert list(partial) == ["prior", "decoder"]
    np.testing.assert_array_equal(partial["decoder"], drawn["decoder"])


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("clip", "bundle tiny has no clip, only prior, decoder, upsampler_0; use one that has it"),
        ("prior", "bundle tiny makes no z_i, only image_8, image_16; give it, or use a bundle that makes it"),
        ("decoder", "bundle tiny makes no image_8, only z_i, image_16"),
    ],
)
def test_a_system_needs_its_stages(missing, line):
    # Before anything is drawn: the call itself says so.
    with pytest.raises(UserError, match=f"^{line}"):
        run_system(tiny.without(missing), encoded(PROMPTS), jax.random.key(0))


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
@pytest.mark.parametrize("stage", ["prior", "decoder", "upsampler_0"])
def test_settings_out_of_range(stage, field, value, line):
    settings = tiny.system().settings([])
    settings[stage] = dataclasses.replace(settings[stage], **{field: value})
    # Before anything is drawn.
    with pytest.raises(UserError, match=f"^{stage}: {line}"):
        run_system(tiny.system(), encoded(PROMPTS), jax.random.key(0), settings=settings)


def test_pixels_have_no_candidates():
    settings = {"decoder": SamplingSettings(steps=3, num_candidates=2)}
    with pytest.raises(UserError, match="^decoder: num_candidates is 2; only a stage of embeddings chooses among some"):
        run(settings=settings)


def test_bounds_themselves_are_allowed():
    process, most = ProcessSpec(num_steps=100), {"guidance_scale": 0.0, "eta": 1.0, "guidance_rescale": 1.0}
    SamplingSettings(steps=100, num_candidates=64, **most).check("x", process)
    SamplingSettings(steps=1, guidance_scale=100.0, num_candidates=1).check("x", process)


def test_default_settings_are_the_systems(tiny_bundle):
    settings = tiny_bundle.settings([])
    assert settings["prior"] == SamplingSettings(steps=3)
    assert settings["decoder"] == SamplingSettings(steps=3, guidance_scale=2.0)
    assert dataclasses.replace(tiny_bundle, sampling={}).settings([])["prior"] == SamplingSettings()


def test_settings_of_an_unknown_stage():
    with pytest.raises(UserError, match="settings for decodr, .*did you mean 'decoder'"):
        run(settings={"decodr": SamplingSettings()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeated(Stage):
    """Makes every pixel four, times a gain that it has trained: no diffusion, and no sampling but its own."""

    TAG = ("stage", "repeated")
    network: Network
    size: int
    reads = ("image_16",)

    @property
    def writes(self):
        return f"image_{self.image_size}"

    @property
    def image_size(self):
        return self.size

    def sample(self, options, weights, rows, noise):
        return weights.params["gain"] * jnp.repeat(jnp.repeat(rows["image_16"], 2, axis=1), 2, axis=2)


@pytest.mark.slow
def test_a_stage_that_is_no_diffusion(drawn):
    tiny_system = tiny.system()
    last = Repeated(network=tiny_system.networks["upsampler_0"], size=32)
    system = dataclasses.replace(
        tiny_system,
        stages=tiny_system.stages | {"last": last},
        params=tiny_system.params | {"last": {"gain": jnp.float32(0.5)}},
        streams=tiny_system.streams | {"last": 9},
    )
    assert system.image_sizes()[32] == "last"
    made = run(system=system)
    np.testing.assert_array_equal(made["upsampler_0"], drawn["upsampler_0"])
    np.testing.assert_array_equal(made["last"][:, ::2, 1::2], 0.5 * drawn["upsampler_0"])
    with pytest.raises(UserError, match="last of bundle tiny is no diffusion stage; use a bundle in which it is"):
        system.stage("last")
