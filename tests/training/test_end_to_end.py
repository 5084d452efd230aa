"""Recipe tiny from nothing to images in one process: four runs, a bundle, a prompt."""

import dataclasses
import json

import numpy as np
import pytest

from train.recipes import tiny
from unclip_jax.bundle import __main__ as bundle_command
from unclip_jax.bundle.store import load, save
from unclip_jax.core.errors import UserError
from unclip_jax.sampling.text_to_image import text_to_image
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training import statistics
from unclip_jax.training.encoders import FrozenEncoder
from unclip_jax.training.export import assemble_unclip
from unclip_jax.training.run import train

pytestmark = pytest.mark.usefixtures("quick_compile")

STAGES = ("clip", "prior", "decoder", "upsampler")
QUARTERS = {"mse", "mse_q0", "mse_q1", "mse_q2", "mse_q3"}


def config(stage, folder, **changes):
    """Recipe tiny in a folder of its own, with a preview of the last step only, and U-Nets of one level: compiling
    takes nearly all of the time."""
    recipe = getattr(tiny, stage)()
    if stage in ("decoder", "upsampler"):
        changes["model"] = dataclasses.replace(recipe.model, channel_mult=(1,))
    changed = {"workdir": str(folder / stage), "sample_every": 4, "save_every": 4, "tensorboard": False}
    run = dataclasses.replace(recipe.run, **changed)
    data = dataclasses.replace(recipe.data, data_dir=str(folder / "data"))
    return dataclasses.replace(recipe, run=run, data=data, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The four workdirs and the bundle."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "STATS_EXAMPLES", 64)
        train(config("clip", folder))
        train(config("prior", folder, clip=str(folder / "clip")))
        # A bundle that holds nothing but the CLIP is all the decoder needs.
        pack(folder / "clip_bundle", clip=folder / "clip")
        train(config("decoder", folder, clip=str(folder / "clip_bundle")))
        train(config("upsampler", folder))
    runs = {stage: folder / stage for stage in STAGES[:3]}
    pack(folder / "bundle", upsamplers=(folder / "upsampler",), **runs)
    return folder


def pack(out, **runs):
    system = assemble_unclip(name=out.name, license="Apache-2.0", description="", **runs)
    save(system, out, dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "metrics"),
    [
        ("clip", {"image_to_text", "text_to_image", "logit_scale"}),
        ("prior", QUARTERS | {"cosine", "cosine_shuffled", "cosine_z_t"}),
        ("decoder", QUARTERS | {"vlb"}),
        ("upsampler", QUARTERS),
    ],
)
def test_what_a_run_leaves_behind(folder, stage, metrics):
    lines = [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) and metrics <= set(line) for line in lines)
    assert lines[0]["loss"] != lines[3]["loss"]
    assert (folder / stage / "samples" / "step_000004.png").is_file()


@pytest.mark.slow
def test_the_bundle_draws(folder, capsys):
    bundle_command.info(str(folder / "bundle"))
    assert "8 -> 16 px" in capsys.readouterr().out
    system = load(folder / "bundle")
    assert system.sampling["decoder"] == SamplingSettings(steps=3, guidance_scale=2.0)
    images = text_to_image(system, ["a red circle", "two rings"], seed=0)
    assert images.shape == (2, 16, 16, 3) and (images[0] != images[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_run_goes_on_with_its_own_clip_only(folder, tiny_folder, monkeypatch, stage):
    monkeypatch.setattr(statistics, "STATS_EXAMPLES", 8)
    # Where it lies does not matter.
    moved = config(stage, folder, clip=str(folder / "bundle"))
    assert int(train(moved).step) == 4
    with pytest.raises(UserError, match=f"^the clip is not the one that the run in .*{stage}/checkpoints was started"):
        train(config(stage, folder, clip=str(tiny_folder)))


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_tokenizer_only(folder, tmp_path):
    words = [f"{a}{b}" for a in "abcdefgh" for b in "ijklmnop"] * 4
    size = load(folder / "bundle", weights=False).tokenizer.vocab_size
    other = Tokenizer.train(words, size)
    assert other.vocab_size == size
    checkpoint = config("clip", folder)
    other.save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="^the tokenizer is not the one that the run in .* was started with"):
        train(dataclasses.replace(checkpoint, tokenizer=str(tmp_path / "tokenizer")))


@pytest.mark.slow
def test_later_stages_need_a_clip_run(folder):
    with pytest.raises(UserError, match="prior is a prior run; set --clip to the workdir of a CLIP run"):
        FrozenEncoder.load("clip", str(folder / "prior"))
