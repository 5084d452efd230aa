"""Settings of stages on a command line, for the stages of any bundle."""

import dataclasses
import sys

import pytest

from tests import tiny
from unclip_jax.core.errors import UserError
from unclip_jax.sampling.overrides import Overrides, group_of, override, parse
from unclip_jax.stages.settings import SamplingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Does something."""

    bundle: str = "nowhere"
    """A bundle."""
    settings: Overrides = dataclasses.field(default_factory=dict)


@pytest.fixture
def read(monkeypatch):
    def read(*words):
        monkeypatch.setattr(sys, "argv", ["prog", *map(str, words)])
        return parse(Options, "What it does.")

    return read


def test_only_what_is_given_is_an_override(read, tiny_folder):
    assert read("--bundle", tiny_folder) == Options(bundle=str(tiny_folder))
    words = ["--decoder.steps", 7, "--prior.guidance-interval", 10, 90, "--prior.sampler", "dpm++"]
    assert read("--bundle", tiny_folder, *words).settings == {
        "prior": {"guidance_interval": [10, 90], "sampler": "dpm++"},
        "decoder": {"steps": 7},
    }


def test_stages_are_those_of_the_bundle(read, tmp_path):
    from unclip_jax.bundle import save

    save(tiny.without("decoder", tiny.without("prior")), tmp_path / "bundle")
    for words in (["--bundle", tmp_path / "bundle"], [f"--bundle={tmp_path / 'bundle'}"]):
        both = ["--upsampler-0.steps", 3, "--upsamplers.steps", 4]
        assert read(*words, *both).settings == {"upsamplers": {"steps": 4}, "upsampler_0": {"steps": 3}}
        with pytest.raises(UserError, match="no option --decoder.steps; did you mean --upsamplers.steps"):
            read(*words, "--decoder.steps", 3)


def test_without_a_bundle_the_stages_are_those_of_unclip(read):
    words = ["--prior.steps", 1, "--decoder.steps", 2, "--upsamplers.steps", 3]
    assert {name: own["steps"] for name, own in read(*words).settings.items()} == {
        "prior": 1, "decoder": 2, "upsamplers": 3
    }  # fmt: skip


def test_help_says_what_the_bundle_has(read, tiny_folder, capsys):
    with pytest.raises(SystemExit):
        read("--bundle", tiny_folder, "--help")
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "What it does." in words and "How decoder samples." in words and "Here: 2.0." in words


def test_a_stage_of_its_own_name_goes_before_its_group(tiny_bundle):
    asked = {"upsampler_0": {"steps": 9}, "upsamplers": {"steps": 8, "eta": 0.5}, "decoder": {"sampler": "ddpm"}}
    own = tiny_bundle.sampling
    assert override(tiny_bundle, asked) == own | {
        "upsampler_0": dataclasses.replace(own["upsampler_0"], steps=9, eta=0.5),
        "decoder": dataclasses.replace(own["decoder"], sampler="ddpm"),
    }
    base = {"decoder": SamplingSettings(steps=77)}
    assert override(tiny_bundle, asked, base)["decoder"] == SamplingSettings(steps=77, sampler="ddpm")
    assert [group_of(name) for name in ("upsampler_0", "upsampler_12", "decoder", "big_unet")] == [
        "upsamplers", "upsamplers", "decoder", "big_unet"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"decodr": {"steps": 1}}, "settings for decodr, which bundle tiny has not; it has prior, decoder"),
        ({"decoder": {"stepz": 1}}, "settings of decoder.stepz: unknown field; did you mean 'steps'"),
        ({"decoder": {"steps": "many"}}, "settings of decoder.steps: expected a value of type int, got 'many'"),
    ],
)
def test_overrides_that_make_no_sense(tiny_bundle, asked, line):
    with pytest.raises(UserError, match=line):
        override(tiny_bundle, asked)
