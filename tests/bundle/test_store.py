import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.bundle.helpers import edit, edit_tensors, weights
from tests.helpers import assert_trees_equal
from unclip_jax import bundle as bundles
from unclip_jax.bundle import store
from unclip_jax.bundle.safetensors_file import write_safetensors
from unclip_jax.core.errors import UserError
from unclip_jax.models.parameters import identity
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Tokenizer


def test_a_bundle_comes_back_bit_for_bit(whole, saved):
    loaded = bundles.load(saved)
    assert loaded.name == "tiny" and loaded.license == "Apache-2.0" and loaded.description == "a test"
    assert loaded.sampling == whole.sampling
    assert loaded.tokenizer == whole.tokenizer
    assert_trees_equal(loaded.stats, whole.stats)
    assert list(loaded.stages.items()) == list(whole.stages.items())
    assert (loaded.streams, loaded.identities) == (whole.streams, whole.identities)
    assert loaded.networks == whole.networks
    assert_trees_equal(loaded.encoders["clip"].params, whole.encoders["clip"].params)
    assert_trees_equal(loaded.params, whole.params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((loaded.params, loaded.encoders)))
    assert list(loaded.image_sizes()) == [8, 16, 32]


def test_the_folder_is_what_the_documentation_says(saved):
    assert {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()} == {
        "config.json",
        "clip.safetensors",
        "prior.safetensors",
        "decoder.safetensors",
        "upsampler_0.safetensors",
        "upsampler_1.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }
    prior = safetensors.numpy.load_file(saved / "prior.safetensors")
    assert {"stats/mean", "stats/std", "positions", "z_i_in/kernel"} <= set(prior)


def test_equal_bundles_have_equal_files_and_the_hash_covers_all_of_them(whole, saved, tmp_path):
    first = bundles.load(saved).hash
    assert bundles.save(whole, tmp_path / "again") == first
    changed = weights(whole.stages["decoder"].network, 99)
    other = dataclasses.replace(whole, params=whole.params | {"decoder": changed})
    assert bundles.save(other, tmp_path / "other") != first


def test_only_the_parts_asked_for_are_read(copy):
    for name in ("clip", "prior", "upsampler_1"):
        (copy / f"{name}.safetensors").unlink()
    loaded = bundles.load(copy, parts=("decoder", "upsampler_0"))
    assert list(loaded.params) == ["decoder", "upsampler_0"] and loaded.encoders["clip"].params == {}
    assert loaded.stats is None and list(loaded.stages) == ["prior", "decoder", "upsampler_0", "upsampler_1"]
    with pytest.raises(UserError, match=r"has no part decodr; did you mean 'decoder'\?"):
        bundles.load(copy, parts=("decodr",))
    with pytest.raises(UserError, match=r"clip\.safetensors is missing"):
        bundles.load(copy)


def test_a_description_can_be_read_alone_and_is_checked_all_the_same(saved, whole, copy):
    described = bundles.load(saved, weights=False)
    assert described.params == {} and described.encoders["clip"].params == {}
    assert described.networks == whole.networks
    edit_tensors(copy, "decoder", lambda tensors: tensors.pop("conditioner/null_z_i"))
    edit_tensors(copy, "decoder", lambda tensors: tensors.pop("conv_in/kernel"))
    with pytest.raises(UserError, match=r"decoder\.safetensors: .* is missing \(and 1 more\)"):
        bundles.load(copy, weights=False)


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_halves_the_file_and_rounds(whole, saved, tmp_path, dtype, bound):
    bundles.save(whole, tmp_path / dtype, dtype=dtype)
    sizes = [(folder / "clip.safetensors").stat().st_size for folder in (tmp_path / dtype, saved)]
    assert 0.45 < sizes[0] / sizes[1] < 0.6
    loaded = bundles.load(tmp_path / dtype)
    ours, theirs = (jax.tree.leaves((each.params, each.encoders)) for each in (loaded, whole))
    for leaf, original in zip(ours, theirs, strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, original, rtol=bound, atol=1e-6)
    assert_trees_equal(loaded.stats, whole.stats)
    kept = bundles.load(tmp_path / dtype, parts=("clip",), dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept.encoders["clip"].params)} == {jnp.dtype(dtype)}


def test_weights_that_do_not_fit_in_float16_or_are_not_finite(whole, tmp_path):
    for value, message in ((1e6, "does not fit in float16; store it as bfloat16"), (np.nan, "is not finite")):
        clip = whole.encoders["clip"]
        broken = Encoder(network=clip.network, params=clip.params | {"logit_scale": np.asarray(value, np.float32)})
        bundle = dataclasses.replace(whole, encoders={"clip": broken})
        with pytest.raises(UserError, match=f"clip: tensor logit_scale {message}"):
            bundles.save(bundle, tmp_path / "x", dtype="float16")
    stats = EmbeddingStats(mean=jnp.full(6, jnp.nan), std=jnp.ones(6))
    with pytest.raises(UserError, match="prior: tensor stats/mean is not finite"):
        bundles.save(dataclasses.replace(whole, stats=stats), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("prior", lambda tensors: tensors.pop("positions"), "tensor positions is missing;"),
        ("decoder", lambda tensors: tensors.update(extra=np.zeros(1)), "tensor extra is unexpected;"),
        (
            "clip",
            lambda tensors: tensors.update(class_token=np.zeros((2, 4))),
            r"tensor class_token has shape \[2, 4\], not \[8\];",
        ),
        ("prior", lambda tensors: tensors.pop("stats/std"), "tensor stats/std is missing;"),
        ("prior", lambda tensors: tensors.update({"stats/mean": np.zeros(5)}), r"stats/mean has shape \[5\]"),
    ],
)
def test_tensors_must_be_those_of_the_spec(copy, part, change, message):
    edit_tensors(copy, part, change)
    with pytest.raises(UserError, match=rf"{part}\.safetensors: .*{message}"):
        bundles.load(copy)


def test_damaged_files(copy):
    path = copy / "clip.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"clip\.safetensors is damaged"):
        bundles.load(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        bundles.load(copy)


def test_config_errors_name_the_field(copy):
    edit(copy, lambda config: config["stages"]["prior"]["stage"]["network"].update(widht=1))
    where = r"stages\.prior\.stage\.network\.widht: unknown field; did you mean 'width'\?"
    with pytest.raises(UserError, match=where):
        bundles.load(copy)
    edit(copy, lambda config: config["stages"]["prior"]["stage"]["network"].update(network="priori"))
    with pytest.raises(UserError, match=r"network\.network: 'priori' \(str\) is not known; did you mean 'prior'\?"):
        bundles.load(copy)
    edit(copy, lambda config: config["stages"]["prior"]["stage"]["network"].update(network="clip"))
    with pytest.raises(UserError, match=r"network\.network: 'clip' \(str\) is no Denoiser"):
        bundles.load(copy)
    edit(copy, lambda config: config.update(format=3))
    with pytest.raises(UserError, match=r"format 3, this version reads 1 and 2; upgrade"):
        bundles.load(copy)


def test_another_tokenizer_is_refused(copy):
    Tokenizer.train(["something else entirely"] * 9, 270).save(copy / "tokenizer")
    with pytest.raises(UserError, match=r"is not the tokenizer of config\.json"):
        bundles.load(copy)


def test_a_clip_without_an_identity_gets_that_of_its_weights(whole, tmp_path):
    clip = whole.encoders["clip"]
    alone = System(name="clip", encoders={"clip": clip}, stages={}, tokenizer=whole.tokenizer)
    bundles.save(alone, tmp_path / "clip", dtype="float16")
    expected = identity(clip.params)
    assert bundles.load(tmp_path / "clip").identities == {"clip": expected}
    assert identity(weights(clip.network, 42)) != expected


def test_a_folder_is_not_overwritten_by_accident(whole, copy, tmp_path):
    with pytest.raises(UserError, match="already exists; choose another folder, or overwrite"):
        bundles.save(whole, copy)
    (copy / "upsampler_9.safetensors").write_text("stale")
    bundles.save(whole, copy, overwrite=True)
    assert not (copy / "upsampler_9.safetensors").exists()
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="is not a bundle, so it is not overwritten"):
        bundles.save(whole, tmp_path / "photos", overwrite=True)


def test_a_full_disk_leaves_nothing_behind(whole, copy, monkeypatch):
    before = bundles.load(copy).hash
    written = []

    def full_after_two(path: Path, tensors: dict) -> None:
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        write_safetensors(path, tensors)

    monkeypatch.setattr(store, "write_safetensors", full_after_two)
    with pytest.raises(OSError, match="No space left"):
        bundles.save(whole, copy, overwrite=True)
    assert len(written) == 2
    assert list(copy.parent.iterdir()) == [copy]
    assert bundles.load(copy).hash == before


def test_names(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHIPPED", saved.parent)
    assert bundles.find("tiny") == saved
    assert bundles.find(str(saved)) == saved
    with pytest.raises(UserError, match=r"no bundle demoo; give a bundle's folder or a name \(.* tiny\)"):
        bundles.load("demoo")
    with pytest.raises(UserError, match=r"is not a bundle, it has no config\.json"):
        bundles.load(tmp_path)
