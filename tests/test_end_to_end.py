"""Recipe tiny from nothing to images in one process: four runs, a bundle, a prompt."""

import dataclasses
import json

import numpy as np
import pytest

from train.recipes import tiny
from unclip_jax import bundle as bundles
from unclip_jax.bundle import __main__ as bundle_command
from unclip_jax.core.errors import UserError
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.text_to_image import text_to_image
from unclip_jax.training.stages import prior
from unclip_jax.training.stages.clip import train_clip
from unclip_jax.training.stages.common import FrozenCLIP
from unclip_jax.training.stages.decoder import train_decoder
from unclip_jax.training.stages.prior import train_prior
from unclip_jax.training.stages.upsampler import train_upsampler

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
        patch.setattr(prior, "STATS_EXAMPLES", 64)
        train_clip(config("clip", folder))
        train_prior(config("prior", folder, clip=str(folder / "clip")))
        # A bundle that holds nothing but the CLIP is all the decoder needs.
        bundle_command.pack(bundle_command.Pack(out=folder / "clip_bundle", clip=folder / "clip"))
        train_decoder(config("decoder", folder, clip=str(folder / "clip_bundle")))
        train_upsampler(config("upsampler", folder))
    runs = {stage: folder / stage for stage in STAGES[:3]}
    bundle_command.pack(bundle_command.Pack(out=folder / "bundle", upsamplers=(folder / "upsampler",), **runs))
    return folder


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


def test_the_bundle_draws(folder, capsys):
    bundle_command.info(str(folder / "bundle"))
    assert "8 -> 16 px" in capsys.readouterr().out
    bundle = bundles.load(folder / "bundle")
    assert bundle.sampling["decoder"] == StageSettings(steps=3, guidance_scale=2.0)
    images = text_to_image(bundle, ["a red circle", "two rings"], seed=0)
    assert images.shape == (2, 16, 16, 3) and (images[0] != images[1]).any()


@pytest.mark.parametrize(("stage", "train"), [("prior", train_prior), ("decoder", train_decoder)])
def test_a_run_goes_on_with_its_own_clip_only(folder, tiny_folder, monkeypatch, stage, train):
    monkeypatch.setattr(prior, "STATS_EXAMPLES", 8)
    # Where it lies does not matter.
    moved = config(stage, folder, clip=str(folder / "bundle"))
    assert int(train(moved).step) == 4
    with pytest.raises(UserError, match=f"^the clip is not the one that the run in .*{stage}/checkpoints was started"):
        train(config(stage, folder, clip=str(tiny_folder)))


def test_a_run_goes_on_with_its_own_tokenizer_only(folder, tmp_path):
    words = [f"{a}{b}" for a in "abcdefgh" for b in "ijklmnop"] * 4
    size = bundles.load(folder / "bundle", parts=(), weights=False).tokenizer.vocab_size
    other = Tokenizer.train(words, size)
    assert other.vocab_size == size
    checkpoint = config("clip", folder)
    other.save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="^tokenizer is '.*', but the run in .* was started with None"):
        train_clip(dataclasses.replace(checkpoint, tokenizer=str(tmp_path / "tokenizer")))


def test_later_stages_need_a_clip_run(folder):
    with pytest.raises(UserError, match="prior is a prior run; set --clip to the workdir of a CLIP run"):
        FrozenCLIP.load(str(folder / "prior"))
