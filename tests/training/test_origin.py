"""What belongs to weights is taken from them, by runs that start from them and by runs that carry on."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.helpers import assert_trees_equal
from tests.tiny import replaced
from train.recipes import RECIPES
from train.recipes import tiny as recipes
from unclip_jax import bundle as bundles
from unclip_jax.core.errors import UserError
from unclip_jax.data.config import DataConfig
from unclip_jax.diffusion import FlowSpec
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems import unclip
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training import loop, statistics
from unclip_jax.training.belongings import Belongings
from unclip_jax.training.checkpoint import Checkpoints, SavedMeta
from unclip_jax.training.origin import find_start, starting_from
from unclip_jax.training.run import train
from unclip_jax.training.state import State

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def red(tmp_path_factory):
    """A folder of pictures and captions that are unlike those of any bundle."""
    folder = tmp_path_factory.mktemp("red")
    for i in range(8):
        Image.new("RGB", (32, 32), (255, 8 * i, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a vermilion surface")
    return folder


@pytest.fixture
def started(monkeypatch, tmp_path, red):
    """Calls `train` up to its loop, and gives what the loop would get."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(statistics, "STATS_EXAMPLES", 8)
    found = {}

    def keep(stage, frozen, batches, **rest):
        del stage, batches
        found.update(rest, frozen=frozen)
        return State(step=0, params={}, ema={}, opt_state={}, skipped=0)

    monkeypatch.setattr(loop, "train", keep)

    def run(config):
        run = dataclasses.replace(config.run, workdir=str(tmp_path / "run"))
        train(dataclasses.replace(config, run=run, data=DataConfig(source=str(red), batch_size=8)))
        return dict(found)

    return run


def save(workdir, meta, params):
    """A checkpoint as a run would leave it."""
    zero, params = jnp.zeros((), jnp.int32), jax.tree.map(jnp.asarray, params)
    state = State(step=zero, params=params, ema=params, opt_state={}, skipped=zero)
    checkpoints = Checkpoints(workdir, meta=meta, keep=1)
    checkpoints.save(2, state, {})
    checkpoints.wait()
    checkpoints.close()


def start(config, folder):
    """As the command line makes it."""
    return dataclasses.replace(starting_from(config, str(folder)), clip=str(folder))


def test_a_prior_keeps_the_space_of_its_weights(started, tiny_folder, tiny_bundle):
    found = started(start(recipes.prior(), tiny_folder))
    assert_trees_equal(found["frozen"]["stats"], jax.tree.map(np.asarray, tiny_bundle.stats))
    again = Belongings.of_meta(saved_meta(found["meta"]), "x")
    assert_trees_equal(again.stats, jax.tree.map(np.asarray, tiny_bundle.stats))
    assert again.stage == found["meta"].config.stage() and again.tokenizer == tiny_bundle.tokenizer
    assert again.identities == {"clip": tiny_bundle.identities["clip"]}
    assert again.sampling == tiny_bundle.sampling["prior"] and again.license == tiny_bundle.license
    assert_trees_equal(found["start_params"](), tiny_bundle.params["prior"])


def saved_meta(meta) -> SavedMeta:
    config = json.loads(json.dumps(meta.extra))
    return SavedMeta(step=2, kind=meta.kind, config={}, extra=config, progress={}, versions={})


def test_statistics_are_measured_where_that_is_asked_for(started, tiny_folder, tiny_bundle):
    config = dataclasses.replace(start(recipes.prior(), tiny_folder), stats="measure")
    stats = started(config)["frozen"]["stats"]
    assert np.abs(np.asarray(stats.mean) - np.asarray(tiny_bundle.stats.mean)).max() > 0.01


def test_deviations_of_zero_are_refused(started, tiny_bundle, tmp_path):
    flat = EmbeddingStats(mean=tiny_bundle.stats.mean, std=tiny_bundle.stats.std.at[3].set(0))
    bundles.save(dataclasses.replace(tiny_bundle, stats=flat), tmp_path / "flat")
    config = start(recipes.prior(), tmp_path / "flat")
    with pytest.raises(
        UserError, match="flat were trained with have a deviation that is not above 0; start from other"
    ):
        started(config)
    assert (np.asarray(started(dataclasses.replace(config, stats="measure"))["frozen"]["stats"].std) > 0).all()


def test_a_resumed_run_keeps_what_it_measured(started, tiny_folder, tiny_bundle, tmp_path):
    """Whatever its data are now, and whatever it started from."""
    config = dataclasses.replace(start(recipes.prior(), tiny_folder), stats="measure")
    meta = started(config)["meta"]
    known = {"stats": {"mean": [0.5] * 16, "std": [2.0] * 16}}
    other = dataclasses.replace(meta, extra=meta.extra | known)
    save(tmp_path / "run", other, tiny_bundle.params["prior"])
    found = started(config)
    assert found["start_params"]() is None
    assert (np.asarray(found["frozen"]["stats"].mean) == 0.5).all() and found["meta"].extra == other.extra
    # Where its weights came from need not be there any more.
    moved = replaced(recipes.prior(), run={"workdir": str(tmp_path / "run")})
    assert starting_from(moved, "gone").process.prediction == "v"


def test_a_clip_keeps_the_tokenizer_of_its_weights(started, tiny_folder, tiny_bundle, tmp_path):
    found = started(starting_from(recipes.clip(), str(tiny_folder)))
    assert found["meta"].extra["tokenizer"]["definition"] == tiny_bundle.tokenizer.definition
    assert found["meta"].config.model == tiny_bundle.encoder("clip").network
    # And so it does when it carries on, though its captions are others.
    meta = started(recipes.clip())["meta"]
    assert meta.extra["tokenizer"] != found["meta"].extra["tokenizer"]
    save(tmp_path / "run", found["meta"], tiny_bundle.encoder("clip").params)
    assert started(recipes.clip())["meta"].extra == found["meta"].extra
    other = Tokenizer.train(["vermilion"] * 3, 300)
    other.save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"^the tokenizer is not the one that the run in .* was started with: it is "):
        started(dataclasses.replace(recipes.clip(), tokenizer=str(tmp_path / "tokenizer")))


def test_the_demo_starts_from_itself(started):
    found = started(starting_from(RECIPES["clip"]["shapes"](), "demo"))
    assert found["meta"].config.model.text.vocab_size == 399
    recipe = RECIPES["decoder"]["shapes-inpaint"]()
    assert started(recipe)["meta"].config.model.inpainting


CHANGES = [
    ("prior", {"process": {"schedule": "linear"}}, "process.schedule is 'linear', but the weights of {} were trained"),
    ("prior", {"model": {"num_heads": 1}}, "model.num_heads is 1, but the weights of {} were trained with 2; give the"),
    ("prior", {"model": {"z_t_scale": 1.0}}, "model.z_t_scale is 1.0, but the weights of {} were trained with 4.0"),
    ("prior", {"normalise": "scale"}, "normalise is 'scale', but the weights of {} were trained with 'whiten'"),
    ("decoder", {"model": {"null": "learned", "z_i_scale": 2.0}}, "model.z_i_scale is 2.0, but the weights of {} "),
    ("upsampler", {"low_res": {"scale": 4}}, "low_res.scale is 4, but the weights of {} were trained with 2"),
    ("clip", {"model": {"embedding": "raw"}}, "model.embedding is 'raw', but the weights of {} were trained with 'un"),
]


@pytest.mark.parametrize(("kind", "changes", "line"), CHANGES)
def test_a_config_that_contradicts_the_weights(started, tiny_folder, kind, changes, line):
    config = starting_from(getattr(recipes, kind)(), str(tiny_folder))
    with pytest.raises(UserError) as raised:
        started(replaced(config, **changes))
    assert str(raised.value).startswith(line.format(tiny_folder))


def test_another_process_is_said_by_its_name(started, tiny_folder):
    config = starting_from(recipes.upsampler(), str(tiny_folder))
    with pytest.raises(UserError, match=r"^process is 'flow', but the weights of .* were trained with 'ProcessSpec'; "):
        started(dataclasses.replace(config, process=FlowSpec()))
    mult = replaced(config, model={"channel_mult": (1, 3)})
    with pytest.raises(UserError, match=r"^model.channel_mult\[1\] is 3, but the weights of .* were trained with 2;"):
        started(mult)


def test_what_changes_no_function_may_change(started, tiny_folder):
    config = starting_from(recipes.decoder(), str(tiny_folder))
    found = started(replaced(config, model={"remat": True, "dtype": "bfloat16", "dropout": 0.1}, drop_caption=0.9))
    assert found["meta"].config.model.remat


def test_another_clip_is_refused(started, tiny_folder, tiny_bundle, tmp_path):
    encoder = tiny_bundle.encoder("clip")
    other = dataclasses.replace(encoder, params=tiny.weights(encoder.network, 99))
    bundles.save(dataclasses.replace(tiny.without("clip"), encoders={"clip": other}, identities={}), tmp_path / "other")
    config = dataclasses.replace(start(recipes.prior(), tiny_folder), clip=str(tmp_path / "other"))
    with pytest.raises(UserError, match="^the clip is not the one that the weights of .* were trained with"):
        started(config)


def test_a_recipe_takes_its_sizes_from_the_weights(tiny_folder, tiny_bundle):
    for kind, name in (("prior", "prior"), ("decoder", "decoder")):
        recipe = RECIPES[kind]["shapes"]()
        config = starting_from(recipe, str(tiny_folder))
        assert config.model == tiny_bundle.stage(name).network and config.process == tiny_bundle.stage(name).process
        assert (config.clip, config.sampling) == (str(tiny_folder), tiny_bundle.sampling[name])
        assert (config.optim, config.run, config.data) == (recipe.optim, recipe.run, recipe.data)


def test_of_several_upsamplers_the_one_of_the_size(tiny_bundle, tmp_path):
    first = tiny_bundle.stage("upsampler_0")
    second = unclip.upsampler_stage(dataclasses.replace(first.network, image_size=32), first.process, LowRes(scale=2))
    stages, params = tiny_bundle.stages | {"upsampler_1": second}, tiny_bundle.params
    params = params | {"upsampler_1": tiny.weights(second.network, 9)}
    several = dataclasses.replace(tiny_bundle, stages=stages, params=params, streams=unclip.streams(list(stages)))
    bundles.save(several, tmp_path / "two")
    where = str(tmp_path / "two")
    assert find_start(recipes.upsampler(), where).part == "upsampler_0"
    assert find_start(recipes.upsampler(), where, "image_32").part == "upsampler_1"
    with pytest.raises(UserError, match="two makes image_16, image_32, and no image_256; choose the size of one of"):
        find_start(RECIPES["upsampler"]["paper-256"](), where)


def test_weights_that_are_not_there(tiny_folder, tmp_path):
    bundles.save(tiny.without("upsampler_0"), tmp_path / "none")
    with pytest.raises(UserError, match="none has no upsampler; start from another bundle or run"):
        find_start(recipes.upsampler(), str(tmp_path / "none"))
    with pytest.raises(UserError, match="no bundle nowhere"):
        find_start(recipes.upsampler(), "nowhere")


def test_an_inpainting_network_starts_from_one_that_is_not(tiny_folder, tiny_bundle):
    config = replaced(recipes.decoder(), model={"inpainting": True})
    network = starting_from(config, str(tiny_folder)).model
    assert network.inpainting
    found = find_start(config, str(tiny_folder)).params(network)
    assert jax.tree.map(np.shape, found) == jax.tree.map(lambda leaf: leaf.shape, network.abstract_params())
    plain = tiny_bundle.params["decoder"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(found["conv_in"]["kernel"][:, :, :3], plain)


def test_several_networks_are_no_start(tiny_bundle, tmp_path):
    stage, params = tiny_bundle.stage("upsampler_0"), tiny_bundle.params["upsampler_0"]
    experts = dataclasses.replace(stage, network=TimestepExperts(expert=stage.network, boundaries=(1.0,)))
    both = {f"expert_{i}": params for i in range(2)}
    several = dataclasses.replace(
        tiny_bundle,
        stages=tiny_bundle.stages | {"upsampler_0": experts},
        params=tiny_bundle.params | {"upsampler_0": both},
    )
    bundles.save(several, tmp_path / "x")
    with pytest.raises(UserError, match="upsampler_0 of bundle .* is several networks"):
        find_start(recipes.upsampler(), str(tmp_path / "x"))


def test_several_networks_are_not_trained_as_one(started):
    """Sampling has one time for all examples, training one for each."""
    config = recipes.upsampler()
    experts = TimestepExperts(expert=config.model, boundaries=(1.0,))
    with pytest.raises(UserError, match="the network is several, each for times of its own; train them one by one"):
        started(dataclasses.replace(config, model=experts))


def test_statistics_say_how_they_were_measured():
    same, own = jnp.full(4, 0.25), jnp.arange(1.0, 5.0)
    assert statistics.normalisation(EmbeddingStats(mean=jnp.zeros(4), std=same)) == "scale"
    assert statistics.normalisation(EmbeddingStats(mean=jnp.zeros(4), std=own)) == "whiten"
    assert statistics.normalisation(EmbeddingStats(mean=own, std=same)) == "whiten"


@pytest.mark.slow
def test_no_device_is_touched_before_the_cluster_is_known():
    """Where there are several hosts, JAX must not have looked for devices."""
    program = (
        "from train.recipes import tiny\nfrom unclip_jax.training.origin import starting_from\n"
        "starting_from(tiny.prior(), 'demo')\n"
        "from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_settings_come_from_the_weights_even_where_they_are_defaults(tiny_bundle, tmp_path):
    bundles.save(dataclasses.replace(tiny_bundle, sampling={}), tmp_path / "plain")
    assert starting_from(recipes.prior(), str(tmp_path / "plain")).sampling == SamplingSettings()
