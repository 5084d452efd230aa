"""The training commands, in this process but for one or two; what a person gets wrong ends in one line."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.data.test_folder import write_captioned
from tests.helpers import assert_trees_equal
from train import cli
from train.recipes import RECIPES, finetune, tiny
from unclip_jax.bundle import load
from unclip_jax.core.config import to_json
from unclip_jax.core.errors import run_cli
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.training import statistics
from unclip_jax.training.checkpoint import load_params
from unclip_jax.training.export import read_run

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs a training command and gives its exit status, stdout and stderr."""
    monkeypatch.setenv("UNCLIP_JAX_NO_CACHE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(stage, *words):
        monkeypatch.setattr(sys, "argv", [f"train.{stage}", *map(str, words)])
        status = 0
        try:
            run_cli(importlib.import_module(f"train.{stage}").main)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def trained(monkeypatch):
    """The configs that would have been trained."""
    configs = []
    for stage in cli.RECIPES:
        monkeypatch.setattr(f"train.{stage}.train", configs.append)
    return configs


def assert_one_line(result, line):
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {line}") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tinny"], "no recipe 'tinny' for the prior; did you mean 'tiny'?"),
        (["nothing-like-it"], "no recipe 'nothing-like-it' for the prior; known are shapes, photos, "),
        ([], "no recipe given; name one first, then options: shapes, photos"),
        (["--run.steps", "3", "tiny"], "no recipe given; name one first"),
        (["tiny", "--optim.learning-rat", "1"], "no option --optim.learning-rat; did you mean --optim.learning-rate?"),
        (["tiny", "--steps", "1"], "no option --steps; did you mean --run.steps?"),
        (["tiny", "--optim.learning-rate", "fast"], "--optim.learning-rate: could not convert string to float: 'fast'"),
        (["tiny", "--process.prediction", "y"], "invalid choice 'y' for argument '--process.prediction'"),
        (["tiny", "--optim.learning-rate", "-1"], "learning_rate is -1.0; it must be 0 or more"),
        (["tiny", "--process.prediction", "eps", "--process.zero-terminal-snr"], "process: zero_terminal_snr leaves"),
        (["tiny", "--sampling.steps", "2000"], "sampling: steps is 2000; choose 1 to 100"),
        (["photos", "--name", "../birds"], "--name is '../birds'; give a name for a folder, such as birds"),
        (["photos", "--name"], "--name is ''; give a name for a folder"),
        (["tiny", "--data.batch-size"], "missing value for argument '--data.batch-size'"),
    ],
)  # fmt: skip
def test_mistakes_in_the_command_line(command, trained, words, line):
    assert_one_line(command("prior", *words), line)
    assert trained == []


def test_options_reach_the_config(command, trained):
    words = ["tiny", "--optim.learning-rate", "0.5", "--run.mesh.data", "2", "--sampling.steps", "7"]
    assert command("decoder", *words, "--run.no-tensorboard")[0] == 0
    (config,) = trained
    assert config.optim.learning_rate == 0.5 and config.run.mesh.data == 2 and not config.run.tensorboard
    assert config.sampling == SamplingSettings(steps=7, guidance_scale=2.0)
    assert config.model == tiny.decoder().model


def test_a_recipe_that_starts_from_weights_has_their_sizes(command, trained, tiny_folder, tiny_bundle, tmp_path):
    words = ["shapes", "--run.workdir", tmp_path / "run", "--start-from", tiny_folder]
    assert command("decoder", *words)[0] == 0
    (config,) = trained
    stage = tiny_bundle.stage("decoder")
    assert (config.model, config.process, config.start_from) == (stage.network, stage.process, str(tiny_folder))
    assert (config.clip, config.sampling) == (str(tiny_folder), tiny_bundle.sampling["decoder"])
    assert config.optim == RECIPES["decoder"]["shapes"]().optim
    # What is asked for comes on top, whether weights like it or not.
    more = ["--model.inpainting", "--sampling.steps", 7, "--process", "flow", "--clip", "x"]
    assert command("decoder", *words, *more)[0] == 0
    config = trained[-1]
    assert config.model.inpainting and config.process.TAG[1] == "flow"
    assert config.sampling.steps == 7 and config.clip == "x"


def test_a_name_leads_through_all_stages(command, trained):
    for stage in RECIPES:
        assert command(stage, "photos", "--name", "birds", "--data.source", "x")[0] == 0
    clip, prior, decoder, upsampler = trained
    assert clip.run.workdir == prior.clip == decoder.clip == "runs/birds/clip"
    workdirs = ["runs/birds/prior", "runs/birds/decoder", "runs/birds/upsampler"]
    assert [config.run.workdir for config in (prior, decoder, upsampler)] == workdirs
    # A CLIP that is not of the recipe's own runs stays, and what is asked for comes on top.
    assert command("decoder", "finetune", "--name=birds")[0] == 0
    assert (trained[-1].run.workdir, trained[-1].clip) == ("runs/birds/decoder", "demo")
    assert command("prior", "photos", "--clip", "y", "--name", "birds", "--run.workdir", "z")[0] == 0
    assert (trained[-1].run.workdir, trained[-1].clip) == ("z", "y")


def test_fine_tuning_takes_its_sizes_from_the_weights(command, trained, tiny_folder, tiny_bundle, tmp_path):
    for stage in ("clip", "prior", "decoder"):
        words = ["finetune", "--start-from", tiny_folder, "--run.workdir", tmp_path / stage]
        assert command(stage, *words)[0] == 0
        config = trained[-1]
        assert config.model == tiny_bundle.networks[stage] and config.start_from == str(tiny_folder)
        assert config.optim == finetune.OPTIM and getattr(config, "clip", str(tiny_folder)) == str(tiny_folder)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["clip", "prior"])
def test_fine_tuning_at_rate_0_changes_nothing(command, tiny_folder, tiny_bundle, tmp_path, stage):
    write_captioned(tmp_path / "photos", [f"{i}.png" for i in range(8)])
    words = ["finetune", "--start-from", tiny_folder, "--run.workdir", tmp_path / "run", "--run.no-tensorboard"]
    words += ["--data.source", tmp_path / "photos", "--data.batch-size", 8, "--run.steps", 2, "--run.sample-every", 0]
    status, _, err = command(stage, *words, "--optim.learning-rate", 0)
    assert status == 0, err
    encoders = {name: each.params for name, each in tiny_bundle.encoders.items()}
    assert_trees_equal(load_params(tmp_path / "run")[0], (encoders | tiny_bundle.params)[stage])


def test_weights_to_start_from_that_are_not_there(command, trained, tmp_path):
    words = ["tiny", "--run.workdir", tmp_path / "run", "--start-from"]
    assert_one_line(command("prior", *words, "nowhere"), "no bundle nowhere;")
    assert_one_line(command("upsampler", "photos", *words[1:], "demo"), "bundle demo makes image_64, image_128, and no")
    assert command("upsampler", "photos", *words[1:], "demo", "--model.image-size", 64)[0] == 0
    assert trained[-1].model.image_size == 64 and trained[-1].model.channels == 32


@pytest.mark.parametrize("stage", RECIPES)
def test_help_lists_the_recipes(command, trained, stage):
    status, out, err = command(stage, "--help")
    assert (status, err) == (0, "")
    assert "Needs a trained CLIP." in out or stage in ("clip", "upsampler")
    assert all(name in out for name in RECIPES[stage])
    assert command(stage, "tiny", "--help")[1].count("--run.workdir") == 1
    assert trained == []


@pytest.mark.parametrize(
    ("clip", "line"),
    [
        ("", "no CLIP given; set --clip to the workdir of a CLIP run or to a bundle"),
        ("nowhere", "no bundle nowhere;"),
    ],
)
def test_a_clip_that_is_not_there(command, tmp_path, clip, line):
    assert_one_line(command("prior", "tiny", "--clip", clip, "--run.workdir", tmp_path / "run"), line)
    assert not (tmp_path / "run").exists()


def photos(folder):
    """A few photographs that come with test libraries."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    images = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    images += load_sample_images().images
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.jpg")
    return folder


def test_a_folder_of_photographs_without_captions_trains_no_clip(command, tmp_path):
    folder = photos(tmp_path / "photos")
    words = ["tiny", "--data.source", folder, "--run.workdir", tmp_path / "run"]
    assert_one_line(command("clip", *words), f"{folder} holds 5 images and no captions; put x.txt beside")


@pytest.mark.slow
def test_a_folder_of_photographs_trains_an_upsampler(command, tmp_path):
    workdir = tmp_path / "run"
    size = ["--model.image-size", 32, "--model.channels", 8, "--model.channel-mult", 1, "--model.groups", 4]
    run = ["--run.workdir", workdir, "--run.steps", 2, "--run.log-every", 1, "--run.no-tensorboard"]
    folder = ["--data.source", photos(tmp_path / "photos"), "--crop-fraction", 0.5]
    status, out, err = command("upsampler", "photos", *folder, *size, *run)
    assert status == 0 and "step 2/2 (100%)" in out, err
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    # The recipe holds pictures out, of five at least one, and evaluates the last step.
    assert lines[-1]["step"] == 2 and np.isfinite(lines[-1]["held_out/loss"])
    params, meta = load_params(workdir)
    assert meta["step"] == 2 and sorted(meta["extra"]) == ["sampling", "stage"]
    assert meta["extra"]["sampling"] == to_json(SamplingSettings(steps=27))
    assert read_run(workdir).stage.reads == ("image_8",)
    assert params["conv_in"]["kernel"].shape == (3, 3, 2 * 2 * 6, 8)


@pytest.mark.slow
def test_stages_are_trained_resumed_and_packed(command, monkeypatch, tmp_path):
    """By command; all four without are in tests/training/test_end_to_end.py."""
    monkeypatch.setattr(statistics, "STATS_EXAMPLES", 8)
    runs = {stage: tmp_path / stage for stage in ("clip", "prior")}
    shared = ["--data.data-dir", tmp_path / "data", "--run.sample-every", 0, "--run.no-tensorboard"]
    for stage, workdir in runs.items():
        clip = ["--clip", runs["clip"]] if stage != "clip" else []
        words = ["tiny", *clip, *shared, "--run.workdir", workdir, "--run.steps"]
        status, out, err = command(stage, *words, 2)
        assert status == 0 and "step 2/2 (100%)" in out and "carrying on" not in out, err
        status, out, err = command(stage, *words, 4)
        assert status == 0 and "carrying on from step 2 in " in out and "step 4/4 (100%)" in out, err
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(np.isfinite(line["loss"]) for line in lines)
    status, out, err = command("pack", tmp_path / "bundle", *(w for s, run in runs.items() for w in (f"--{s}", run)))
    assert status == 0 and "bundle (clip, prior), hash " in out, err
    system = load(tmp_path / "bundle")
    weights = {name: encoder.params for name, encoder in system.encoders.items()} | system.params
    for stage, workdir in runs.items():
        params, meta = load_params(workdir, "ema")
        assert meta["step"] == 4
        assert_trees_equal(weights[stage], params)
    assert system.sampling["prior"] == tiny.prior().sampling


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["clip", "upsampler"])
def test_as_a_program(stage):
    done = subprocess.run(
        [sys.executable, "-m", f"train.{stage}", "nothing-like-it"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: no recipe 'nothing-like-it' for the {stage}; known are ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("stage", "name"), [("prior", "edm"), ("decoder", "flow"), ("upsampler", "edm")])
def test_another_process_than_the_recipes(command, trained, stage, name):
    assert command(stage, "tiny", "--process", name, "--run.steps", 2)[0] == 0
    (config,) = trained
    assert config.process.TAG[1] == name and config.run.steps == 2
    assert not config.stage().network.learns_variance
    config.stage().check()


def test_a_process_that_is_not_known(command):
    assert_one_line(command("prior", "tiny", "--process", "vp"), "--process is 'vp'; choose edm or flow")
    assert_one_line(command("clip", "tiny", "--process=edm"), "--process is for what is trained by diffusion")
