import dataclasses

import pytest

from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.parallel.mesh import MeshSpec
from unclip_jax.training.config import OptimConfig, RunConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1.0), ("adam_rate", 0.0), ("adam_rate", 0.5), ("warmup_steps", -1), ("beta1", 1.0),
        ("beta2", -0.1), ("eps", 0.0), ("ema_decay", 1.0), ("weight_decay", -1.0), ("clip_norm", 0.0),
        ("accumulate", 0), ("max_skips", 0),
    ],
)  # fmt: skip
def test_optim_refuses(field, value):
    with pytest.raises(UserError, match=f"^{field} is "):
        OptimConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workdir", ""), ("keep_period", 0), ("hang_timeout", -1), ("steps", 0), ("log_every", 0), ("save_every", 0),
        ("keep", 0), ("sample_every", -1), ("seed", -1), ("seed", 2**32),
    ],
)  # fmt: skip
def test_run_refuses(field, value):
    with pytest.raises(UserError, match=f"^{field} is "):
        RunConfig(**{"workdir": "w", "steps": 1, field: value})


def test_json_and_back():
    run = RunConfig(workdir="w", steps=3, mesh=MeshSpec(fsdp=2))
    assert from_json(RunConfig, to_json(run)) == run
    optim = OptimConfig(clip_norm=None, on_nonfinite="skip")
    assert from_json(OptimConfig, to_json(optim)) == optim


def test_every_field_is_explained():
    for cls in (OptimConfig, RunConfig, MeshSpec):
        source = __import__("inspect").getsource(cls)
        for field in dataclasses.fields(cls):
            after = source.split(f"    {field.name}: ")[1].split("\n")[1]
            assert after.startswith('    """'), f"{cls.__name__}.{field.name} has no docstring"
