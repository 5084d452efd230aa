import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import assert_trees_equal
from unclip_jax import bundle as bundles
from unclip_jax.bundle import __main__, pack
from unclip_jax.core.config import to_json
from unclip_jax.core.errors import UserError
from unclip_jax.editing.probing import fit_basis
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.checkpoint import Checkpoints, Meta
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.stages.clip import CLIPConfig
from unclip_jax.training.stages.common import DataConfig
from unclip_jax.training.state import State


@pytest.fixture
def runs(whole, monkeypatch):
    """What `load_params` would find: one run per part."""
    found = {}
    for name, part in whole.parts.items():
        config = {"model": to_json(part.spec)} | ({"process": to_json(part.process)} if part.process else {})
        extra = {"clip_identity": bundles.identity(whole.parts["clip"].params), "sampling": {"steps": 3}}
        if part.kind == "clip":
            extra = {"tokenizer": to_json(whole.tokenizer)}
        if part.kind == "prior":
            extra["stats"] = {key: np.asarray(getattr(whole.stats, key)).tolist() for key in ("mean", "std")}
        if part.kind == "upsampler":
            extra = {"low_res_size": part.low_res_size}
        meta = {"kind": part.kind, "config": json.loads(json.dumps(config)), "extra": extra}
        found[Path(name)] = (part.params, meta)
    monkeypatch.setattr(pack, "load_params", lambda path, which: found[path])
    return found


def test_pack_assembles_runs(whole, runs, tmp_path, capsys):
    command = __main__.Pack(
        out=tmp_path / "packed",
        clip=Path("clip"),
        prior=Path("prior"),
        decoder=Path("decoder"),
        upsamplers=(Path("upsampler_0"), Path("upsampler_1")),
        description="d",
    )
    __main__.pack(command)
    assert "wrote" in capsys.readouterr().out
    packed = bundles.load(tmp_path / "packed")
    assert packed.name == "packed" and packed.license == "Apache-2.0"
    assert packed.tokenizer == whole.tokenizer
    assert_trees_equal(packed.stats, whole.stats)
    assert packed.sampling == {"prior": StageSettings(steps=3), "decoder": StageSettings(steps=3)}
    for name, part in packed.parts.items():
        assert part.spec == whole.parts[name].spec and part.process == whole.parts[name].process
        assert_trees_equal(part.params, whole.parts[name].params)


def test_pack_takes_sampling_settings_from_the_command_line(runs, tmp_path, capsys):
    assignments = ("prior.steps=25", "prior.sampler=ddpm", "prior.guidance_scale=4")
    __main__.pack(__main__.Pack(out=tmp_path / "packed", clip=Path("clip"), prior=Path("prior"), sampling=assignments))
    assert bundles.load(tmp_path / "packed").sampling == {
        "prior": StageSettings(sampler="ddpm", steps=25, guidance_scale=4.0)
    }
    capsys.readouterr()
    __main__.info(str(tmp_path / "packed"))
    assert "sampled with sampler ddpm, steps 25, guidance_scale 4.0\n" in capsys.readouterr().out


def test_pack_takes_the_rest_from_another_bundle(whole, runs, tmp_path):
    folder = tmp_path / "base"
    basis = fit_basis(np.random.default_rng(0).standard_normal((9, whole.parts["clip"].spec.embed_dim), np.float32))
    base = dataclasses.replace(whole, basis=basis, license="MIT", description="d")
    bundles.save(base, folder)
    params, meta = runs[Path("decoder")]
    meta["extra"]["clip_identity"] = whole.parts["clip"].clip_identity
    runs[Path("decoder")] = (jax.tree.map(lambda x: x + 1, params), meta)
    command = __main__.Pack(out=tmp_path / "packed", base=str(folder), decoder=Path("decoder"))
    __main__.pack(command)
    packed, base = bundles.load(tmp_path / "packed"), bundles.load(folder)
    assert (packed.name, packed.license, packed.description) == ("packed", "MIT", "d")
    assert packed.tokenizer == whole.tokenizer and list(packed.parts) == list(whole.parts)
    assert_trees_equal(packed.stats, base.stats)
    assert packed.basis is not None
    np.testing.assert_array_equal(packed.basis.components, basis.components)
    assert packed.sampling == base.sampling | {"decoder": StageSettings(steps=3)}
    for name in packed.parts:
        params = runs[Path("decoder")][0] if name == "decoder" else base.parts[name].params
        assert_trees_equal(packed.parts[name].params, params)


def test_upsamplers_replace_those_of_the_base(whole, runs):
    about = {"name": "x", "license": "", "description": ""}
    packed = pack.assemble(base=whole, upsamplers=[Path("upsampler_0")], **about)
    assert [name for name in packed.parts if name.startswith("upsampler")] == ["upsampler_0"]
    assert "upsampler_1" not in packed.sampling
    # Another CLIP's embeddings have other components.
    basis = fit_basis(np.random.default_rng(0).standard_normal((9, whole.parts["clip"].spec.embed_dim), np.float32))
    assert pack.assemble(base=dataclasses.replace(whole, basis=basis), clip=Path("clip"), **about).basis is None


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("steps=3", "cannot read --sampling steps=3; write it as decoder.guidance_scale=2"),
        ("prior.steps", "cannot read --sampling prior.steps"),
        ("clip.steps=3", "--sampling clip.steps=3: no clip is sampled"),
        ("prior.stepz=3", "--sampling prior.stepz: unknown field; did you mean 'steps'?"),
        ("prior.steps=many", "--sampling prior.steps: expected a value of type int, got 'many'"),
        ("prior.steps=2000", "sampling of prior: steps is 2000; choose 1 to 1000"),
    ],
)
def test_pack_refuses_sampling_settings(runs, tmp_path, assignment, line):
    command = __main__.Pack(out=tmp_path / "packed", prior=Path("prior"), clip=Path("clip"), sampling=(assignment,))
    with pytest.raises(UserError, match=re.escape(line)):
        __main__.pack(command)
    assert not (tmp_path / "packed").exists()


def test_pack_refuses_runs_that_do_not_belong_together(runs):
    about = {"name": "x", "license": "", "description": ""}
    with pytest.raises(UserError, match="decoder is a decoder run, not a prior run"):
        pack.assemble(prior=Path("decoder"), **about)
    with pytest.raises(UserError, match="nothing to pack"):
        pack.assemble(**about)
    runs[Path("prior")][1]["extra"]["tokenizer"] = to_json(Tokenizer.train(["x"] * 9, 270))
    with pytest.raises(UserError, match="prior has another tokenizer"):
        pack.assemble(clip=Path("clip"), prior=Path("prior"), **about)


def test_pack_takes_the_moving_average_of_a_real_checkpoint(whole, tmp_path):
    clip = whole.parts["clip"]
    run = RunConfig(workdir=str(tmp_path / "run"), steps=7)
    config = CLIPConfig(model=clip.spec, data=DataConfig(batch_size=1), optim=OptimConfig(), run=run)
    meta = Meta(kind="clip", config=config, extra={"tokenizer": to_json(whole.tokenizer)})
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.asarray, clip.params)
    state = State(step=zero, params=jax.tree.map(jnp.zeros_like, ema), ema=ema, opt_state={}, skipped=zero)
    checkpoints = Checkpoints(tmp_path / "run", meta=meta, keep=1)
    checkpoints.save(7, state, {})
    checkpoints.wait()
    checkpoints.close()

    packed = pack.assemble(clip=tmp_path / "run", name="x", license="", description="")
    assert_trees_equal(packed.parts["clip"].params, ema)
    assert packed.parts["clip"].spec == clip.spec
    assert packed.parts["clip"].clip_identity == bundles.identity(clip.params)
