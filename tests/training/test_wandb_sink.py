"""Weights & Biases, a module in its place: what it is given, and that it stops no run."""

import json
import sys
import types

import numpy as np
import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.training.config import RunConfig
from unclip_jax.training.metrics import FILE, MetricLogger


class Stub(types.ModuleType):
    """Keeps what it is told."""

    def __init__(self, fails_at=None):
        super().__init__("wandb")
        self.inits, self.logged, self.finished, self._fails_at = [], [], 0, fails_at

    def init(self, **arguments):
        self.inits.append(arguments)
        if self._fails_at == "init":
            raise RuntimeError("no API key")
        return self

    def log(self, values, step):
        if self._fails_at == step:
            raise OSError("no network")
        self.logged.append((step, values))

    def Image(self, image):
        return image.shape

    def finish(self):
        self.finished += 1


def run(tmp_path, monkeypatch, stub):
    monkeypatch.setitem(sys.modules, "wandb", stub)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "toy"}))
    config = RunConfig(workdir=str(tmp_path), steps=4, log_every=2, tensorboard=False, wandb="birds")
    logger = MetricLogger(config, start_step=0, batch_size=4, window={}, quiet=False)
    for step in range(1, 5):
        logger.add(step, {"loss": float(step), "rare": float("nan")})
    logger.evaluation(4, {"held_out": {"loss": 2.0}, "train_eval": {"loss": 1.0}})
    logger.image(4, np.zeros((2, 3, 3), np.uint8))
    logger.close()


def test_it_is_given_what_the_file_has(tmp_path, monkeypatch):
    stub = Stub()
    run(tmp_path, monkeypatch, stub)
    (init,) = stub.inits
    assert (init["project"], init["resume"], init["config"]) == ("birds", "allow", {"kind": "toy"})
    found = {}
    for step, values in stub.logged:
        found.setdefault(step, {}).update(values)
    evaluated = {"held_out/loss": 2.0, "train_eval/loss": 1.0, "samples": (2, 3, 3)}
    assert found == {1: {"loss": 1.0}, 2: {"loss": 1.5}, 4: {"loss": 3.5} | evaluated}
    assert stub.finished == 1


def test_a_run_that_carries_on_is_the_same(tmp_path, monkeypatch):
    first, second = Stub(), Stub()
    for stub in (first, second):
        run(tmp_path, monkeypatch, stub)
    assert first.inits[0]["id"] == second.inits[0]["id"]


@pytest.mark.parametrize(("at", "why", "logged"), [("init", "RuntimeError: no API key", 0), (2, "OSError: no net", 1)])
def test_what_fails_is_said_once(tmp_path, monkeypatch, capsys, at, why, logged):
    stub = Stub(at)
    run(tmp_path, monkeypatch, stub)
    out = capsys.readouterr().out
    assert out.count("wandb fails") == 1 and f"wandb fails ({why}" in out and len(stub.logged) == logged
    assert len((tmp_path / FILE).read_text().splitlines()) == 4


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = RunConfig(workdir=str(tmp_path), steps=4, tensorboard=False, wandb="birds")
    with pytest.raises(
        UserError, match=r"package wandb, which is not installed; run pip install 'unclip_jax\[wandb\]'"
    ):
        MetricLogger(config, start_step=0, batch_size=4, window={}, quiet=False)
