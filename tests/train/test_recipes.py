"""Every recipe as JSON, kept in tests/golden/recipes, so that no number changes unseen.

python -m tests.train.test_recipes     writes them again; look at the diff before committing it
"""

import dataclasses
import json
from pathlib import Path

import pytest

from train.recipes import RECIPES
from unclip_jax.core.config import from_json, to_json

GOLDEN = Path(__file__).parent.parent / "golden" / "recipes"
NAMES = [(stage, name) for stage, recipes in RECIPES.items() for name in recipes]
AGAIN = "if that is what you meant: python -m tests.train.test_recipes, and commit what changes"


def recipe(stage, name):
    return RECIPES[stage][name]()


def dump(stage, name):
    return json.dumps(to_json(recipe(stage, name)), indent=2) + "\n"


def golden(stage, name):
    return GOLDEN / f"{stage}-{name}.json"


@pytest.mark.parametrize(("stage", "name"), NAMES)
def test_recipe_is_as_recorded(stage, name):
    path = golden(stage, name)
    assert path.is_file(), f"{path.name} is missing; {AGAIN}"
    assert dump(stage, name) == path.read_text("utf-8"), f"recipe {name} of the {stage} has changed; {AGAIN}"


def test_nothing_is_recorded_of_recipes_that_are_gone():
    recorded = {path.name for path in GOLDEN.iterdir()}
    assert recorded == {golden(*name).name for name in NAMES}, AGAIN


@pytest.mark.parametrize(("stage", "name"), NAMES)
def test_recipe_goes_to_json_and_back(stage, name):
    config = recipe(stage, name)
    back = from_json(type(config), json.loads(dump(stage, name)))
    assert back == config
    # Equal is not enough: 3 == 3.0, but a number of steps is no float.
    assert json.dumps(to_json(back)) == json.dumps(to_json(config))


@pytest.mark.parametrize(("stage", "name"), [key for key in NAMES if key[0] in ("decoder", "upsampler")])
def test_variance_channels_go_with_the_process(stage, name):
    config = recipe(stage, name)
    assert config.model.learned_sigma == (config.process.variance == "learned_range")
    assert config.model.low_res == (stage == "upsampler")
    if stage == "upsampler":
        assert 0 < config.crop <= config.model.image_size


@pytest.mark.parametrize(
    "chain", [("shapes", "shapes-64", "shapes-128"), ("paper", "paper-256", "paper-1024"), ("tiny", "tiny")]
)
def test_stages_start_where_the_ones_before_end(chain):
    size = recipe("decoder", chain[0]).model.image_size
    for name in chain[1:]:
        config = recipe("upsampler", name)
        assert config.model.image_size == size * config.low_res.scale
        size = config.model.image_size


@pytest.mark.parametrize("name", ["shapes", "tiny"])
def test_later_stages_listen_to_the_clip_of_their_name(name):
    clip = recipe("clip", name)
    for stage in ("prior", "decoder"):
        config = recipe(stage, name)
        assert config.clip == clip.run.workdir
        assert config.model.embed_dim == clip.model.embed_dim


# Table 3 of 2204.06125, one row per recipe.
TABLE = {
    ("prior", "paper"): {
        "process.num_steps": 1000,
        "process.schedule": "cosine",
        "process.prediction": "x0",
        "sampling.steps": 64,
        "sampling.num_candidates": 2,
        "model.width": 2048,
        "model.num_layers": 24,
        "model.num_heads": 32,
        "model.context": 256,
        "drop_caption": 0.1,
        "optim.weight_decay": 6.0e-2,
        "data.batch_size": 4096,
        "run.steps": 600_000,
        "optim.learning_rate": 1.1e-4,
        "optim.beta1": 0.9,
        "optim.beta2": 0.96,
        "optim.eps": 1e-6,
        "optim.ema_decay": 0.9999,
    },
    ("decoder", "paper"): {
        "process.num_steps": 1000,
        "process.schedule": "cosine",
        "process.variance": "learned_range",
        "sampling.steps": 250,
        "model.image_size": 64,
        "model.channels": 512,
        "model.num_blocks": 3,
        "model.channel_mult": (1, 2, 3, 4),
        "model.head_channels": 64,
        "model.attention_resolutions": (32, 16, 8),
        "model.text.context": 256,
        "model.text.width": 2048,
        "model.text.num_layers": 24,
        "model.text.num_heads": 32,
        "model.dropout": 0.1,
        "model.num_image_tokens": 4,
        "drop_z_i": 0.1,
        "drop_caption": 0.5,
        "optim.weight_decay": 0.0,
        "data.batch_size": 2048,
        "run.steps": 800_000,
        "optim.learning_rate": 1.2e-4,
        "optim.beta1": 0.9,
        "optim.beta2": 0.999,
        "optim.eps": 1e-8,
        "optim.ema_decay": 0.9999,
    },
    ("upsampler", "paper-256"): {
        "process.num_steps": 1000,
        "process.schedule": "cosine",
        "sampling.steps": 27,
        "crop_fraction": 0.25,
        "low_res.degradation": "blur",
        "model.channels": 320,
        "model.num_blocks": 3,
        "model.channel_mult": (1, 2, 3, 4),
        "model.attention_resolutions": (),
        "model.dropout": 0.1,
        "optim.weight_decay": 0.0,
        "data.batch_size": 1024,
        "run.steps": 1_000_000,
        "optim.learning_rate": 1.2e-4,
        "optim.beta2": 0.999,
        "optim.eps": 1e-8,
        "optim.ema_decay": 0.9999,
    },
    ("upsampler", "paper-1024"): {
        "process.num_steps": 1000,
        "process.schedule": "linear",
        "sampling.steps": 15,
        "crop_fraction": 0.25,
        "low_res.degradation": "bsr",
        "model.channels": 192,
        "model.num_blocks": 2,
        "model.channel_mult": (1, 1, 2, 2, 4, 4),
        "model.attention_resolutions": (),
        "model.dropout": 0.0,
        "optim.weight_decay": 0.0,
        "data.batch_size": 512,
        "run.steps": 1_000_000,
        "optim.learning_rate": 1.0e-4,
        "optim.beta2": 0.999,
        "optim.eps": 1e-8,
        "optim.ema_decay": 0.9999,
    },
}


@pytest.mark.parametrize("key", TABLE, ids="-".join)
def test_paper_recipes_are_table_3(key):
    config = recipe(*key)
    found = {}
    for path in TABLE[key]:
        value = config
        for name in path.split("."):
            value = getattr(value, name) if dataclasses.is_dataclass(value) else value[name]
        found[path] = value
    assert found == TABLE[key]


def write() -> None:
    """Records every recipe as it is now."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for path in GOLDEN.iterdir():
        path.unlink()
    for stage, name in NAMES:
        golden(stage, name).write_text(dump(stage, name), "utf-8")
    print(f"wrote {len(NAMES)} recipes to {GOLDEN}")


if __name__ == "__main__":
    write()
