"""Whole runs that hold something out: what they say, keep and leave behind."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from train.recipes import tiny
from unclip_jax.core.errors import UserError
from unclip_jax.data.config import DataConfig
from unclip_jax.training.checkpoint import load_params
from unclip_jax.training.config import OptimConfig, ValidationConfig
from unclip_jax.training.metrics import FILE
from unclip_jax.training.run import train

pytestmark = pytest.mark.usefixtures("quick_compile")

COUNT = 40
WORDS = ["".join(letters) for letters in itertools.product("bdfg", "aeiou", "klmn", "aeiou")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Noise, each under a name of its own: nothing that could be learnt but by heart."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{WORDS[7 * number]} {WORDS[-number]}")
    return folder


def config(folder, workdir, steps, **validation):
    recipe = tiny.clip()
    changes = {"steps": steps, "log_every": steps, "save_every": steps, "sample_every": steps, "tensorboard": False}
    return dataclasses.replace(
        recipe,
        data=DataConfig(source=str(folder), batch_size=16),
        optim=OptimConfig(optimizer="adamw", learning_rate=1e-2, warmup_steps=2, ema_decay=0.5),
        run=dataclasses.replace(recipe.run, workdir=str(workdir), **changes),
        validation=ValidationConfig(every=20, **validation),
    )


def evaluated(workdir):
    lines = [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]
    return [line for line in lines if "held_out/loss" in line]


@pytest.mark.slow
def test_a_clip_that_learns_by_heart_is_said_to(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train(config(pictures, tmp_path / "run", 120, share=0.4))
    last = evaluated(tmp_path / "run")[-1]
    assert last["train_eval/retrieval"] > 0.9 and last["held_out/retrieval"] < 0.4
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "by heart" in line)
    assert "of training pairs, and" in line and "by chance" in line
    assert out.count("step 120  held_out | train_eval  loss ") == 1
    assert (tmp_path / "run" / "samples" / "step_000120.png").is_file()
    _, meta = load_params(tmp_path / "run", step="best")
    best = max(evaluated(tmp_path / "run"), key=lambda found: found["held_out/retrieval"])
    assert meta["step"] == best["step"]


@pytest.mark.slow
def test_nothing_is_said_where_held_out_examples_do_as_well(pictures, tmp_path, capsys, monkeypatch):
    """The same pictures under other paths."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    other = tmp_path / "other"
    other.mkdir()
    for path in pictures.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    train(config(pictures, tmp_path / "run", 120, source=str(other)))
    last = evaluated(tmp_path / "run")[-1]
    assert last["held_out/retrieval"] == last["train_eval/retrieval"] > 0.9
    out = capsys.readouterr().out
    assert "by heart" not in out and "part:" not in out


@pytest.mark.parametrize(
    ("validation", "line"),
    [
        ({"split": "train"}, "--validation.split names what is trained on; name another, or hold out"),
        ({"source": "HERE"}, "--validation.source names what is trained on"),
        ({"split": "test"}, "has no split 'test'"),
        ({"source": "store:x"}, "where --data.source is a store of embeddings --validation.source must be one"),
        ({"source": "nowhere"}, "no dataset 'nowhere'"),
    ],
)
def test_what_cannot_be_held_out(pictures, tmp_path, monkeypatch, validation, line):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = {name: value.replace("HERE", str(pictures)) for name, value in validation.items()}
    with pytest.raises(UserError, match=line):
        train(config(pictures, tmp_path / "run", 1, **given))
