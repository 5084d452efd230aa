import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.helpers import assert_trees_equal
from tests.sample.helpers import assert_one_line, call
from train import pack
from train.recipes import RECIPES
from unclip_jax import bundle as bundles
from unclip_jax.bundle import __main__ as bundle_command
from unclip_jax.core.config import to_json
from unclip_jax.core.errors import UserError
from unclip_jax.data.config import DataConfig
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.editing.probing import fit_basis
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.parameters import identity
from unclip_jax.stages.contrastive import ContrastiveStage
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems import unclip
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training import export
from unclip_jax.training.checkpoint import Checkpoints, Meta
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.export import assemble_unclip
from unclip_jax.training.stage_configs import CLIPConfig
from unclip_jax.training.state import State

ABOUT = {"name": "x", "license": "", "description": ""}
ALL = ["--clip", "clip", "--prior", "prior", "--decoder", "decoder", "--upsamplers", "upsampler_0", "upsampler_1"]


@pytest.fixture(scope="module")
def whole(tiny_bundle):
    """A system with two upsamplers."""
    first = tiny_bundle.stage("upsampler_0").network
    second = unclip.upsampler_stage(dataclasses.replace(first, image_size=32), ProcessSpec(), LowRes(scale=2))
    stages = tiny_bundle.stages | {"upsampler_1": second}
    params = tiny_bundle.params | {"upsampler_1": tiny.weights(second.network, 9)}
    return dataclasses.replace(tiny_bundle, stages=stages, params=params, streams=unclip.streams(list(stages)))


@pytest.fixture
def runs(whole, monkeypatch):
    """What `load_params` would find: one run per part."""
    clip = whole.encoder("clip")
    tokenizer = {"tokenizer": to_json(whole.tokenizer)}
    extra = tokenizer | {"stage": to_json(ContrastiveStage(network=clip.network))}
    meta = {"kind": "clip", "config": {}, "extra": json.loads(json.dumps(extra))}
    found = {Path("clip"): (clip.params, meta)}
    for name, stage in whole.stages.items():
        extra = {"stage": to_json(stage)}
        if stage.encoders:
            extra |= {"clip_identity": identity(clip.params), "sampling": {"steps": 3}} | tokenizer
        if stage.needs_stats:
            extra["stats"] = {key: np.asarray(getattr(whole.stats, key)).tolist() for key in ("mean", "std")}
        meta = {"kind": name.partition("_")[0], "config": {}, "extra": extra}
        found[Path(name)] = (whole.params[name], json.loads(json.dumps(meta)))
    monkeypatch.setattr(export, "load_params", lambda path, which="params", step=None: found[path])
    return found


def test_pack_assembles_runs(whole, runs, tmp_path):
    result = call(pack, tmp_path / "packed", *ALL, "--description", "d")
    names = "clip, prior, decoder, upsampler_0, upsampler_1"
    assert result.status == 0 and result.out.startswith("licence not stated; --license states one\nwrote "), result.err
    assert f"wrote {tmp_path / 'packed'} ({names}), hash " in result.out
    packed = bundles.load(tmp_path / "packed")
    assert (packed.name, packed.license, packed.description) == ("packed", "", "d")
    assert result.out.endswith(f" {packed.hash}\n")
    assert packed.tokenizer == whole.tokenizer
    assert_trees_equal(packed.stats, whole.stats)
    assert packed.sampling == {"prior": SamplingSettings(steps=3), "decoder": SamplingSettings(steps=3)}
    assert packed.networks == whole.networks and packed.stages == whole.stages and packed.streams == whole.streams
    assert packed.identities == dict.fromkeys(("clip", "prior", "decoder"), identity(whole.encoder("clip").params))
    assert_trees_equal(packed.encoder("clip").params, whole.encoder("clip").params)
    assert_trees_equal(packed.params, whole.params)


OLDER = {
    "num_layers": "depth", "num_heads": "heads", "num_blocks": "depth", "attention_resolutions": "attention_at",
    "num_image_tokens": "image_tokens", "inpainting": "inpaints", "drop_z_i": "drop_image",
    "full_mask_rate": "drop_known",
}  # fmt: skip


def older(config):
    """JSON as the version before wrote it: other names, no word on what kind of network it is."""
    if not isinstance(config, dict):
        return config
    return {OLDER.get(name, name): older(value) for name, value in config.items() if name != "network"}


def test_pack_reads_runs_of_the_version_before(whole, runs):
    """Their checkpoints say no more of what was trained than its config."""
    expected = {}
    for name in ("clip", "prior", "decoder", "upsampler_0"):
        config = RECIPES[name.partition("_")[0]]["tiny"]()
        params, meta = runs[Path(name)]
        extra = {key: value for key, value in meta["extra"].items() if key != "stage"}
        if name == "upsampler_0":
            extra["low_res_size"] = 8
        meta = {"kind": config.kind, "config": json.loads(json.dumps(older(to_json(config)))), "extra": extra}
        runs[Path(name)] = params, meta
        expected[name] = config.stage()
    given = {name: Path(name) for name in ("clip", "prior", "decoder")}
    packed = assemble_unclip(**given, upsamplers=[Path("upsampler_0")], **ABOUT)
    assert packed.encoder("clip").network == expected.pop("clip").network
    assert packed.stages == expected and packed.tokenizer == whole.tokenizer
    assert_trees_equal(packed.stats, whole.stats)
    assert packed.params["decoder"] is whole.params["decoder"]


def test_pack_takes_sampling_settings_from_the_command_line(runs, tmp_path, capsys):
    settings = ["--prior.steps", 25, "--prior.sampler", "ddpm", "--prior.guidance-scale", 4]
    assert call(pack, tmp_path / "packed", "--clip", "clip", "--prior", "prior", *settings).status == 0
    assert bundles.load(tmp_path / "packed").sampling == {
        "prior": SamplingSettings(sampler="ddpm", steps=25, guidance_scale=4.0)
    }
    bundle_command.info(str(tmp_path / "packed"))
    assert "sampled with sampler ddpm, steps 25, guidance_scale 4.0\n" in capsys.readouterr().out


def test_a_group_of_settings_is_for_all_upsamplers(runs, tmp_path):
    settings = ["--upsamplers.steps", 4, "--upsamplers.sampler", "dpm++"]
    assert call(pack, tmp_path / "packed", *ALL, *settings).status == 0
    sampling = bundles.load(tmp_path / "packed").sampling
    assert sampling["upsampler_0"] == sampling["upsampler_1"] == SamplingSettings(sampler="dpm++", steps=4)
    assert sampling["decoder"] == SamplingSettings(steps=3)


def test_pack_takes_the_rest_from_another_bundle(whole, runs, tmp_path):
    folder = tmp_path / "base"
    basis = fit_basis(np.random.default_rng(0).standard_normal((9, 16), np.float32))
    bundles.save(dataclasses.replace(whole, basis=basis, license="MIT", description="d"), folder)
    params, meta = runs[Path("decoder")]
    meta["extra"]["clip_identity"] = whole.identities["clip"]
    runs[Path("decoder")] = (jax.tree.map(lambda x: x + 1, params), meta)
    assert call(pack, tmp_path / "packed", "--base", folder, "--decoder", "decoder").status == 0
    packed, base = bundles.load(tmp_path / "packed"), bundles.load(folder)
    assert (packed.name, packed.license, packed.description) == ("packed", "MIT", "d")
    assert packed.tokenizer == whole.tokenizer and list(packed.stages) == list(whole.stages)
    assert_trees_equal(packed.stats, base.stats)
    assert packed.basis is not None
    np.testing.assert_array_equal(packed.basis.components, basis.components)
    assert packed.sampling == base.sampling | {"decoder": SamplingSettings(steps=3)}
    assert_trees_equal(packed.encoder("clip").params, base.encoder("clip").params)
    for name in packed.stages:
        assert_trees_equal(packed.params[name], runs[Path("decoder")][0] if name == "decoder" else base.params[name])


def test_a_licence_is_that_of_the_weights(whole, runs):
    about = ABOUT | {"license": None}
    base = dataclasses.replace(whole, license="MIT")
    assert assemble_unclip(clip=Path("clip"), **about).license == ""
    assert assemble_unclip(base=base, decoder=Path("decoder"), **about).license == "MIT"
    assert assemble_unclip(base=base, decoder=Path("decoder"), **ABOUT | {"license": "own"}).license == "own"
    # What was fine-tuned is still under the licence of what it was.
    runs[Path("prior")][1]["extra"]["license"] = "CreativeML OpenRAIL-M"
    assert assemble_unclip(prior=Path("prior"), **about).license == "CreativeML OpenRAIL-M"
    assert assemble_unclip(base=base, prior=Path("prior"), **about).license == "MIT AND CreativeML OpenRAIL-M"
    # Nothing of this base is left.
    every = {"clip": Path("clip"), "prior": Path("prior"), "decoder": Path("decoder")}
    upsamplers = [Path("upsampler_0"), Path("upsampler_1")]
    assert assemble_unclip(base=base, **every, upsamplers=upsamplers, **about).license == "CreativeML OpenRAIL-M"


def test_stages_that_work_in_two_spaces_are_no_system(whole, runs):
    """A bundle holds one set of statistics, and a stage that has others would be sampled in the wrong space."""
    stage, params = whole.stages["prior"], whole.params["prior"]
    two = {"prior": stage, "again": dataclasses.replace(stage, output="z_i_again")}
    streams = {"prior": 0, "again": 1}
    base = dataclasses.replace(whole, stages=two, params=dict.fromkeys(two, params), streams=streams, sampling={})
    about = ABOUT | {"base": base, "streams": streams}
    found = export.assemble({"prior": Path("prior")}, **about)
    np.testing.assert_array_equal(found.stats.mean, whole.stats.mean)
    runs[Path("prior")][1]["extra"]["stats"] = {"mean": [0.5] * 16, "std": [2.0] * 16}
    with pytest.raises(UserError, match="again and prior normalise z_i by other statistics; pack stages that share"):
        export.assemble({"prior": Path("prior")}, **about)


def test_upsamplers_replace_those_of_the_base(whole, runs):
    base = dataclasses.replace(whole, sampling=whole.sampling | {"upsampler_1": SamplingSettings(steps=7)})
    packed = assemble_unclip(base=base, upsamplers=[Path("upsampler_0")], **ABOUT)
    assert [name for name in packed.stages if name.startswith("upsampler")] == ["upsampler_0"]
    assert "upsampler_1" not in packed.sampling and "upsampler_1" not in packed.params
    # Another CLIP's embeddings have other components.
    basis = fit_basis(np.random.default_rng(0).standard_normal((9, 16), np.float32))
    assert assemble_unclip(base=dataclasses.replace(whole, basis=basis), clip=Path("clip"), **ABOUT).basis is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--steps", "3"], "no option --steps; did you mean --prior.steps?"),
        (["--clip.steps", "3"], "no option --clip.steps; did you mean --prior.steps?"),
        (["--prior.stepz", "3"], "no option --prior.stepz; did you mean --prior.steps?"),
        (["--prior.steps", "many"], "could be instantiated from ['many']; see "),
        (["--prior.steps", "2000"], "sampling of prior: steps is 2000; choose 1 to 100"),
        (["--decoder.steps", "2"], "settings for decoder, which bundle packed has not; it has prior"),
    ],
)
def test_pack_refuses_sampling_settings(runs, tmp_path, words, line):
    assert_one_line(call(pack, tmp_path / "packed", "--clip", "clip", "--prior", "prior", *words), line)
    assert not (tmp_path / "packed").exists()


def test_pack_refuses_what_is_in_the_way(runs, tmp_path):
    (tmp_path / "packed").mkdir()
    words = [tmp_path / "packed", "--clip", "clip"]
    assert_one_line(call(pack, *words), "packed already exists; choose another folder, or overwrite it")
    assert_one_line(call(pack, *words, "--overwrite"), "packed is not a bundle, so it is not overwritten")


def test_pack_refuses_runs_that_do_not_belong_together(runs):
    with pytest.raises(UserError, match="decoder is a decoder run, not a prior run"):
        assemble_unclip(prior=Path("decoder"), **ABOUT)
    with pytest.raises(UserError, match="nothing to pack"):
        assemble_unclip(**ABOUT)
    runs[Path("prior")][1]["extra"]["tokenizer"] = to_json(Tokenizer.train(["x"] * 9, 270))
    with pytest.raises(UserError, match="prior has another tokenizer"):
        assemble_unclip(clip=Path("clip"), prior=Path("prior"), **ABOUT)


@pytest.mark.slow
def test_pack_takes_the_moving_average_of_a_real_checkpoint(whole, tmp_path):
    clip = whole.encoder("clip")
    run = RunConfig(workdir=str(tmp_path / "run"), steps=7)
    config = CLIPConfig(model=clip.network, data=DataConfig(batch_size=1), optim=OptimConfig(), run=run)
    meta = Meta(kind="clip", config=config, extra={"tokenizer": to_json(whole.tokenizer)})
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.asarray, clip.params)
    state = State(step=zero, params=jax.tree.map(jnp.zeros_like, ema), ema=ema, opt_state={}, skipped=zero)
    checkpoints = Checkpoints(tmp_path / "run", meta=meta, keep=1)
    checkpoints.keep_best(5)
    better = state.replace(ema=jax.tree.map(lambda x: x + 1, ema))
    checkpoints.save(5, better, {})
    checkpoints.save(7, state, {}, {"best_step": 5})
    checkpoints.wait()
    checkpoints.close()

    packed = assemble_unclip(clip=tmp_path / "run", **ABOUT)
    assert_trees_equal(packed.encoder("clip").params, ema)
    assert packed.encoder("clip").network == clip.network
    assert packed.identities["clip"] == identity(clip.params)
    packed = assemble_unclip(clip=tmp_path / "run", **ABOUT, step="best")
    assert_trees_equal(packed.encoder("clip").params, better.ema)
