import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.bit_flips import outcomes
from tests.bundle.helpers import edit, edit_tensors
from unclip_jax import bundle as bundles
from unclip_jax.bundle.store import add_statistics
from unclip_jax.core.errors import UserError
from unclip_jax.systems.basis import Basis


def flip(path, byte, bit=3):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["decoder.safetensors", "prior.safetensors", "tokenizer/tokenizer_config.json"])
def test_a_flipped_bit_is_noticed(copy, name):
    """In the last numbers of the files of weights; in a string of the small one."""
    flip(copy / name, -10)
    with pytest.raises(UserError, match=rf"{name} is not as it was written; copy the bundle again|not the tokenizer"):
        bundles.load(copy)


def test_what_is_not_read_is_not_compared(copy):
    flip(copy / "decoder.safetensors", -3)
    assert list(bundles.load(copy, parts=("prior",)).params) == ["prior"]
    bundles.load(copy, weights=False)
    with pytest.raises(UserError, match=r"decoder\.safetensors is not as it was written"):
        bundles.load(copy, parts=("decoder",))


def test_a_bundle_without_digests_is_held_to_its_sha256(copy):
    edit(copy, lambda config: config.pop("digests"))
    bundles.load(copy)
    flip(copy / "prior.safetensors", -3)
    with pytest.raises(UserError, match=r"prior\.safetensors is not as it was written"):
        bundles.load(copy)


def test_the_comparison_can_be_left_out(copy, monkeypatch):
    flip(copy / "decoder.safetensors", -3)
    monkeypatch.setenv("UNCLIP_JAX_NO_CHECK", "1")
    assert "decoder" in bundles.load(copy).params


def test_a_config_that_says_something_else(copy):
    path = copy / "config.json"
    config = json.loads(path.read_text())
    # Other spaces and another order say the same.
    path.write_text(json.dumps(dict(reversed(config.items()))))
    bundles.load(copy)
    config["sampling"]["prior"]["steps"] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r'config\.json is not as it was written; .* take the line "digest" out of it'):
        bundles.load(copy)
    edit(copy, lambda _: None)
    assert bundles.load(copy).sampling["prior"].steps == config["sampling"]["prior"]["steps"]


def test_statistics_that_are_added_have_a_digest(copy):
    add_statistics(copy, Basis(mean=jnp.zeros(6), components=jnp.eye(6), variance=jnp.ones(6)), {})
    bundles.load(copy)
    flip(copy / "basis.safetensors", -3)
    with pytest.raises(UserError, match=r"basis\.safetensors is not as it was written"):
        bundles.load(copy)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("clip", "logit_scale", np.nan),
        ("decoder", "conv_in/kernel", np.inf),
        ("decoder", "conv_in/kernel", -np.inf),
        ("prior", "stats/std", np.nan),
    ],
)
def test_numbers_that_are_not_finite_are_refused_by_name(copy, part, name, value):
    """Whoever wrote them: without digests, as other programs make bundles."""
    edit_tensors(copy, part, lambda tensors: tensors[name].reshape(-1).__setitem__(-1, value))
    edit(copy, lambda config: config.update(files={}, digests={}))
    with pytest.raises(UserError, match=rf"{part}\.safetensors: tensor {name} is not finite"):
        bundles.load(copy)


def test_large_numbers_are_finite(copy):
    """Although their squares are not."""
    edit_tensors(copy, "clip", lambda tensors: tensors.update(logit_scale=np.asarray(3e38, np.float32)))
    edit(copy, lambda config: config.update(files={}, digests={}))
    assert float(bundles.load(copy).encoders["clip"].params["logit_scale"]) == np.float32(3e38)


@pytest.mark.slow
def test_no_flipped_bit_is_unnoticed_or_ends_in_a_traceback(copy):
    def read():
        system = bundles.load(copy)
        arrays = {name: each.params for name, each in system.encoders.items()}, system.params, system.stats
        return arrays, [str(each) for each in (system.tokenizer, system.stages, system.sampling, system.identities)]

    counts, bad = outcomes(copy, read, flips=40, seed=2)
    assert not bad and counts["refused"] >= 36
