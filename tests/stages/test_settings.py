import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion import DDIM, DDPM, Analytic, DPMSolver, ProcessSpec, X0Variance
from unclip_jax.stages.settings import StageSettings

STATISTIC = X0Variance(alpha_bar=(0.9, 0.1), variance=(0.01, 0.3))
ZERO_SNR = ProcessSpec(num_steps=100, prediction="v", zero_terminal_snr=True)


def test_samplers_by_name():
    for name, expected in (
        ("ddim", DDIM(steps=7, eta=0.5)),
        ("ddpm", DDPM(steps=7)),
        ("dpm++", DPMSolver(steps=7)),
        ("sde_dpm++", DPMSolver(steps=7, kind="sde")),
        ("analytic", Analytic(steps=7, x0_variance=STATISTIC)),
    ):
        assert StageSettings(sampler=name, steps=7, eta=0.5).algorithm(STATISTIC) == expected
    bounded = StageSettings(sampler="analytic", steps=7, limit=2.0).algorithm(STATISTIC)
    assert bounded == Analytic(steps=7, x0_variance=STATISTIC, data_range=(-2.0, 2.0))


def test_analytic_without_statistics():
    line = "^sampler analytic needs the network's statistics, .*; run python -m unclip_jax.eval.statistics BUNDLE"
    with pytest.raises(UserError, match=line):
        StageSettings(sampler="analytic").algorithm()


def test_spacings():
    for settings, expected in (({}, [0, 33, 66, 99]), ({"spacing": "trailing"}, [24, 49, 74, 99])):
        process = StageSettings(steps=4, **settings).build(ProcessSpec(num_steps=100))
        np.testing.assert_array_equal(process.schedule.timesteps, expected)


def test_parity_keeps_its_tables_when_respaced():
    how = StageSettings(sampler="ddpm", steps=25, parity=True)
    schedule = how.build(ProcessSpec()).schedule
    assert schedule.respace(25) == schedule and schedule.posterior_x_0[0] < 0.9995


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cond:
    value: jax.Array

    def null(self):
        return Cond(jnp.zeros_like(self.value))


def test_guidance_has_an_interval():
    def model_fn(x_t, t, cond):
        return cond.value[:, None] * jnp.ones_like(x_t)

    guided_fn = StageSettings(guidance_scale=3.0, guidance_interval=(20, 60)).guide(ProcessSpec(), model_fn)
    guided = guided_fn(jnp.zeros((4, 2)), jnp.array([19, 20, 60, 61]), Cond(jnp.ones(4)))
    np.testing.assert_array_equal(guided[:, 0], [1, 3, 3, 1])


def test_goes_to_json_and_back():
    how = StageSettings(
        sampler="sde_dpm++", spacing="karras", guidance_interval=(10, 90), steps=12, guidance_scale=2.0, limit=3.0
    )
    assert from_json(StageSettings, json.loads(json.dumps(to_json(how)))) == how
    assert from_json(ProcessSpec, json.loads(json.dumps(to_json(ZERO_SNR)))) == ZERO_SNR
    assert from_json(X0Variance, json.loads(json.dumps(to_json(STATISTIC)))) == STATISTIC


def test_json_of_before_has_fewer_fields():
    old = {
        "sampler": "ddpm", "steps": 25, "eta": 0.0, "guidance_scale": 4.0, "guidance_rescale": 0.0,
        "threshold": "static", "limit": 5.0, "parity": False, "num_candidates": 1,
    }  # fmt: skip
    assert from_json(StageSettings, old) == StageSettings(sampler="ddpm", steps=25, guidance_scale=4.0, limit=5.0)
    old = {"schedule": "linear", "num_steps": 500, "prediction": "v", "variance": "small"}
    assert from_json(ProcessSpec, old) == ProcessSpec(schedule="linear", num_steps=500, prediction="v")


@pytest.mark.parametrize(
    ("settings", "process", "line"),
    [
        ({"sampler": "dpm++", "eta": 0.5}, {}, "eta is 0.5, which dpm.. has not; set it to 0, or sampler to ddim"),
        ({"guidance_interval": (0, 100)}, {}, "guidance_interval is 0 to 100; choose two steps of 0 to 99, the lower"),
        ({"guidance_interval": (60, 20)}, {}, "guidance_interval is 60 to 20; choose two steps of 0 to 99, the lower"),
        ({"guidance_interval": (-1, 20)}, {}, "guidance_interval is -1 to 20; choose two steps of 0 to 99, the lower"),
        ({"spacing": "karras"}, to_json(ZERO_SNR), "karras spacing has no end where the SNR is 0; set spacing to"),
        ({"parity": True}, {}, "parity is with a ddpm sampler on a cosine schedule"),
        ({"parity": True, "sampler": "ddpm"}, to_json(ZERO_SNR), "parity is with a ddpm sampler on a cosine schedule"),
        ({"parity": True, "sampler": "ddpm", "spacing": "leading"}, {}, "parity is with linspace spacing; set"),
    ],
)
def test_what_does_not_go_together(settings, process, line):
    with pytest.raises(UserError, match=f"^decoder: {line}"):
        StageSettings(**settings).check("decoder", ProcessSpec(**{"num_steps": 100, **process}))


def test_bounds_themselves_are_allowed():
    for settings in (
        StageSettings(guidance_interval=(0, 99), spacing="leading"),
        StageSettings(guidance_interval=(50, 50), sampler="dpm++", spacing="karras"),
        StageSettings(sampler="ddpm", parity=True),
    ):
        settings.check("x", ProcessSpec(num_steps=100))
    StageSettings(spacing="trailing").check("x", ZERO_SNR)
