import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion import (
    DDIM,
    DDPM,
    AnalyticDPM,
    DPMSolver,
    EDMSpec,
    FlowSpec,
    Heun,
    ProcessSpec,
    Threshold,
    X0Variance,
)
from unclip_jax.stages.settings import SamplingSettings

STATISTIC = X0Variance(alpha_bar=(0.9, 0.1), variance=(0.01, 0.3))
ZERO_SNR = ProcessSpec(num_steps=100, prediction="v", zero_terminal_snr=True)


def test_samplers_by_name():
    for name, expected in (
        ("ddim", DDIM(steps=7, eta=0.5)),
        ("ddpm", DDPM(steps=7)),
        ("dpm++", DPMSolver(steps=7)),
        ("sde_dpm++", DPMSolver(steps=7, kind="sde")),
        ("analytic", AnalyticDPM(steps=7, x0_variance=STATISTIC)),
        ("heun", Heun(steps=7)),
    ):
        assert SamplingSettings(sampler=name, steps=7, eta=0.5).build_sampler(STATISTIC) == expected
    bounded = SamplingSettings(sampler="analytic", steps=7, limit=2.0).build_sampler(STATISTIC)
    assert bounded == AnalyticDPM(steps=7, x0_variance=STATISTIC, data_range=(-2.0, 2.0))


def test_analytic_without_statistics():
    line = "^sampler analytic needs the network's statistics, .*; run python -m train.measure BUNDLE"
    with pytest.raises(UserError, match=line):
        SamplingSettings(sampler="analytic").build_sampler()


def test_spacings():
    for settings, expected in (({}, [0, 33, 66, 99]), ({"spacing": "trailing"}, [24, 49, 74, 99])):
        process = SamplingSettings(steps=4, **settings).build_process(ProcessSpec(num_steps=100))
        np.testing.assert_array_equal(process.schedule.timesteps, expected)


def test_processes_in_continuous_time():
    for spec, spacing in ((EDMSpec(), "karras"), (EDMSpec(), "linspace"), (FlowSpec(), "trailing")):
        settings = SamplingSettings(steps=2000, spacing=spacing)
        settings.check("decoder", spec)
        assert settings.build_process(spec).num_steps == 2000
        for sampler in ("ddim", "dpm++", "sde_dpm++", "heun"):
            SamplingSettings(sampler=sampler, steps=2).check("decoder", spec)
    SamplingSettings(eta=1.0, guidance_interval=(-0.5, 0.25)).check("decoder", EDMSpec())
    SamplingSettings(guidance_interval=(0, 1000)).check("decoder", FlowSpec())


@pytest.mark.parametrize(
    ("settings", "process", "line"),
    [
        ({"steps": 0}, EDMSpec(), "steps is 0; choose 1 to 10000"),
        (
            {"sampler": "ddpm"},
            EDMSpec(),
            "sampler ddpm is for discrete processes, not for EDM, sigma 0.002 to 80; set sampler",
        ),
        (
            {"sampler": "analytic"},
            FlowSpec(),
            "sampler analytic is for discrete processes, not for rectified flow, shift 1; set",
        ),
        (
            {"sampler": "heun", "eta": 0.5},
            FlowSpec(),
            "eta is 0.5, which heun has not; set it to 0, or sampler to ddim",
        ),
        ({"spacing": "trailing"}, EDMSpec(), "EDM, sigma 0.002 to 80 has no trailing spacing; choose among karras"),
        ({"spacing": "karras"}, FlowSpec(), "rectified flow, shift 1 has no karras spacing; choose among linspace"),
        ({"guidance_interval": (0, 1000.5)}, FlowSpec(), "guidance_interval is 0 to 1000.5; choose two times of 0 to"),
        ({"guidance_interval": (0.5, -0.5)}, EDMSpec(), "guidance_interval is 0.5 to -0.5; choose two times of -1.55"),
        ({"percentile": 0.0}, ProcessSpec(), "percentile is 0.0; choose above 0 to 1"),
        ({"steps": 1001}, ProcessSpec(), "steps is 1001; choose 1 to 1000"),
    ],
)
def test_what_a_process_does_not_go_with(settings, process, line):
    with pytest.raises(UserError, match=f"^decoder: {line}"):
        SamplingSettings(**settings).check("decoder", process)


def test_thresholds():
    assert SamplingSettings().build_threshold(None) == Threshold(kind="none")
    assert SamplingSettings().build_threshold(1.0) == Threshold(limit=1.0)
    dynamic = SamplingSettings(threshold="dynamic", limit=3.0, percentile=0.9)
    assert dynamic.build_threshold(1.0) == Threshold(kind="dynamic", limit=3.0, percentile=0.9)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cond:
    value: jax.Array

    def null(self):
        return Cond(jnp.zeros_like(self.value))


def test_guidance_has_an_interval():
    def model_fn(x_t, t, cond):
        return cond.value[:, None] * jnp.ones_like(x_t)

    guided_fn = SamplingSettings(guidance_scale=3.0, guidance_interval=(20, 60)).guided(ProcessSpec(), model_fn)
    guided = guided_fn(jnp.zeros((4, 2)), jnp.array([19, 20, 60, 61]), Cond(jnp.ones(4)))
    np.testing.assert_array_equal(guided[:, 0], [1, 3, 3, 1])


def test_goes_to_json_and_back():
    settings = SamplingSettings(
        sampler="sde_dpm++", spacing="karras", guidance_interval=(10, 90), steps=12, guidance_scale=2.0, limit=3.0
    )
    assert from_json(SamplingSettings, json.loads(json.dumps(to_json(settings)))) == settings
    # Whole steps stay whole numbers in files.
    assert json.dumps(to_json(from_json(SamplingSettings, to_json(settings)))["guidance_interval"]) == "[10, 90]"
    between = SamplingSettings(guidance_interval=(-0.25, 1))
    assert from_json(SamplingSettings, json.loads(json.dumps(to_json(between)))) == between
    assert from_json(ProcessSpec, json.loads(json.dumps(to_json(ZERO_SNR)))) == ZERO_SNR
    assert from_json(X0Variance, json.loads(json.dumps(to_json(STATISTIC)))) == STATISTIC


def test_json_of_before_has_fewer_fields():
    old = {
        "sampler": "ddpm", "steps": 25, "eta": 0.0, "guidance_scale": 4.0, "guidance_rescale": 0.0,
        "threshold": "static", "limit": 5.0, "parity": False, "num_candidates": 1,
    }  # fmt: skip
    assert from_json(SamplingSettings, old) == SamplingSettings(sampler="ddpm", steps=25, guidance_scale=4.0, limit=5.0)
    with pytest.raises(UserError, match="config.parity: this version knows only False"):
        from_json(SamplingSettings, {"parity": True})
    old = {"schedule": "linear", "num_steps": 500, "prediction": "v", "variance": "small"}
    assert from_json(ProcessSpec, old) == ProcessSpec(schedule="linear", num_steps=500, prediction="v")


@pytest.mark.parametrize(
    ("settings", "process", "line"),
    [
        ({"sampler": "dpm++", "eta": 0.5}, {}, "eta is 0.5, which dpm.. has not; set it to 0, or sampler to ddim"),
        ({"guidance_interval": (0, 100)}, {}, "guidance_interval is 0 to 100; choose two times of 0 to 99, the lower"),
        ({"guidance_interval": (60, 20)}, {}, "guidance_interval is 60 to 20; choose two times of 0 to 99, the lower"),
        ({"guidance_interval": (-1, 20)}, {}, "guidance_interval is -1 to 20; choose two times of 0 to 99, the lower"),
        (
            {"spacing": "karras"},
            to_json(ZERO_SNR),
            "100 cosine steps has no karras spacing; choose among linspace, leading, trailing",
        ),
    ],
)
def test_what_does_not_go_together(settings, process, line):
    with pytest.raises(UserError, match=f"^decoder: {line}"):
        SamplingSettings(**settings).check("decoder", ProcessSpec(**{"num_steps": 100, **process}))


def test_bounds_themselves_are_allowed():
    for settings in (
        SamplingSettings(guidance_interval=(0, 99), spacing="leading"),
        SamplingSettings(guidance_interval=(50, 50), sampler="dpm++", spacing="karras"),
    ):
        settings.check("x", ProcessSpec(num_steps=100))
    SamplingSettings(spacing="trailing").check("x", ZERO_SNR)
