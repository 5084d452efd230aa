"""Runs that train an adapter: what they hold, how they carry on, and what is made of them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests import tiny
from tests.helpers import assert_trees_equal
from tests.sample.helpers import assert_one_line, call
from train import adapter as adapter_command
from train.recipes import tiny as recipes
from unclip_jax.adapters.lora import LoRAConfig, layers_of, merge
from unclip_jax.bundle import store
from unclip_jax.convert.adapter_options import adapted
from unclip_jax.core.errors import UserError
from unclip_jax.models.parameters import identity
from unclip_jax.training.belongings import AdapterOf, Belongings
from unclip_jax.training.checkpoint import read_params
from unclip_jax.training.encoders import FrozenEncoder
from unclip_jax.training.export import assemble_unclip, read_run
from unclip_jax.training.origin import find_start
from unclip_jax.training.run import train

pytestmark = pytest.mark.usefixtures("quick_compile")
LORA = LoRAConfig(rank=2, alpha=4.0, targets=("attention", "projection"))


def config(folder, bundle, steps=4, **changes):
    """An adapter of the CLIP of recipe tiny, which compiles soonest."""
    recipe = recipes.clip()
    run = dataclasses.replace(
        recipe.run, workdir=str(folder / "run"), steps=steps, save_every=2, sample_every=4, tensorboard=False
    )
    data = dataclasses.replace(recipe.data, data_dir=str(folder / "data"))
    return dataclasses.replace(recipe, run=run, data=data, start_from=str(bundle), **{"lora": LORA} | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_folder):
    """A run of four steps, in one go."""
    folder = tmp_path_factory.mktemp("adapter")
    return folder, train(config(folder, tiny_folder))


@pytest.mark.slow
def test_a_run_holds_the_adapter_alone_and_says_what_it_adapts(trained, tiny_folder):
    folder, state = trained
    params, meta = read_params(folder / "run")
    own = Belongings.of_meta(meta, "run")
    base = store.load(tiny_folder).encoders["clip"].params
    assert_trees_equal(params, jax.device_get(state.ema))
    assert own.adapter == AdapterOf(lora=LORA, base=identity(base), where=str(tiny_folder), part="clip")
    assert all("attention" in path or "projection" in path for path in layers_of(params))
    assert (folder / "run" / "samples" / "step_000004.png").is_file()
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len({line["loss"] for line in lines}) == 4


@pytest.mark.slow
def test_killed_and_resumed_the_same(trained, tiny_folder, tmp_path):
    _, whole = trained
    train(config(tmp_path, tiny_folder, steps=2))
    assert_trees_equal(jax.device_get(train(config(tmp_path, tiny_folder))), jax.device_get(whole))


@pytest.mark.slow
def test_at_rate_0_it_changes_nothing_to_the_bit(tmp_path, tiny_folder):
    still = dataclasses.replace(recipes.OPTIM, learning_rate=0.0)
    train(config(tmp_path, tiny_folder, steps=2, optim=still))
    assert_trees_equal(
        read_run(tmp_path / "run").params, jax.device_get(store.load(tiny_folder).encoders["clip"].params)
    )


@pytest.mark.slow
def test_whoever_reads_the_run_gets_merged_weights(trained, tiny_folder, tmp_path):
    folder, state = trained
    base = jax.device_get(store.load(tiny_folder).encoders["clip"].params)
    ema = jax.device_get(state.ema)
    expected = merge(base, ema, dict.fromkeys(layers_of(ema), 2.0))
    about = {"name": "x", "license": None, "description": ""}
    packed = assemble_unclip(clip=folder / "run", **about)
    assert_trees_equal(packed.encoders["clip"].params, expected)
    assert packed.identities["clip"] == identity(expected) != identity(base)
    assert_trees_equal(FrozenEncoder.load("clip", str(folder / "run")).encoder.params, expected)
    assert packed.license == "Apache-2.0"
    again = config(tmp_path, folder / "run", lora=LoRAConfig())
    assert_trees_equal(find_start(again, str(folder / "run")).params(again.model), expected)


@pytest.mark.slow
def test_what_it_adapts_must_stay_what_it_was(trained, tiny_folder, tmp_path):
    folder, _ = trained
    system = store.load(tiny_folder)
    clip = system.encoders["clip"]
    other = clip.replace(params=tiny.weights(clip.network, 77))
    store.save(dataclasses.replace(tiny.without("prior"), encoders={"clip": other}, identities={}), tmp_path / "other")
    with pytest.raises(UserError, match="but the run adapts [0-9a-f]{12}; put those back"):
        train(config(folder, tmp_path / "other", steps=6))


@pytest.mark.slow
def test_there_must_be_something_to_adapt(tmp_path):
    with pytest.raises(UserError, match="lora.rank is 2, but an adapter adapts weights that are there; set --start"):
        train(config(tmp_path, ""))


def test_belongings_survive_json():
    own = Belongings(
        stage=tiny.system().stages["prior"], adapter=AdapterOf(lora=LORA, base="ab" * 32, where="x", part="prior")
    )
    meta = {"kind": "prior", "config": {}, "extra": json.loads(json.dumps(own.to_meta()))}
    assert Belongings.of_meta(meta, "x").adapter == own.adapter
    assert np.isclose(own.adapter.lora.scale, 2)


@pytest.mark.slow
def test_a_run_becomes_a_file_that_is_merged_to_the_same_weights(trained, tiny_folder, tmp_path):
    folder, _ = trained
    result = call(adapter_command, folder / "run", tmp_path / "a.safetensors")
    assert result.out == f"wrote {tmp_path / 'a.safetensors'}\n"
    system = store.load(tiny_folder)
    made = adapted(system, [str(tmp_path / "a.safetensors")], tiny_folder).encoders["clip"].params
    assert_trees_equal(jax.device_get(made), read_run(folder / "run").params)
    assert_one_line(call(adapter_command, folder / "run", tmp_path / "a.safetensors"), "is already there")
