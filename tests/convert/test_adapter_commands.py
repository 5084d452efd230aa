"""Adapters merged into bundles, carried by them, and written anew."""

import dataclasses
import json

import jax
import pytest
from safetensors import safe_open

from tests import tiny
from tests.convert.test_adapters import adapter
from tests.helpers import assert_close, assert_trees_equal
from tests.sample.helpers import assert_one_line, call
from unclip_jax import bundle
from unclip_jax.adapters.lora import LoRAConfig
from unclip_jax.bundle import __main__ as info
from unclip_jax.convert import __main__ as convert
from unclip_jax.convert.adapter_files import WEIGHTS, read_adapter
from unclip_jax.convert.adapter_options import MAX_ADAPTERS, Use, adapted, input_files, uses
from unclip_jax.convert.adapters import fit, save_adapter
from unclip_jax.core.errors import UserError
from unclip_jax.models.parameters import identity


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_folder):
    """An adapter of the prior that knows its base, and one of the upsampler that does not."""
    folder, system = tmp_path_factory.mktemp("adapters"), bundle.load(tiny_folder)
    for part, base in (("prior", identity(system.params["prior"])), ("upsampler_0", None)):
        own = adapter(system.networks[part], part, LoRAConfig(rank=2, alpha=1.0), base)
        save_adapter(folder / f"{part}.safetensors", own, system.networks[part])
    return folder / "prior.safetensors", folder / "upsampler_0.safetensors"


@pytest.mark.slow
def test_a_merged_bundle_holds_what_is_merged_on_the_fly(files, tiny_folder, tmp_path):
    both = [f"{files[0]}:0.7", str(files[1])]
    result = call(convert, "merge", tiny_folder, tmp_path / "merged", "--adapters", *both)
    assert result.status == 0, result.err
    flying, stored = adapted(bundle.load(tiny_folder), both, tiny_folder), bundle.load(tmp_path / "merged")
    assert_trees_equal(jax.device_get(stored.params), jax.device_get(flying.params))
    with pytest.raises(AssertionError):
        assert_trees_equal(jax.device_get(stored.params), jax.device_get(bundle.load(tiny_folder).params))
    assert result.out == f"wrote {tmp_path / 'merged'}, hash {stored.hash}\n"
    assert stored.name == "merged"


def test_half_of_it_in_two_places_is_all_of_it(files, tiny_folder):
    system = bundle.load(tiny_folder)
    whole, halves = (
        adapted(system, [f"{files[0]}:{s}"] * n, tiny_folder).params["prior"] for s, n in ((1, 1), (0.5, 2))
    )
    assert_close(halves, whole, terms=4)
    assert_trees_equal(adapted(system, [f"{files[0]}:0"], tiny_folder).params["prior"], system.params["prior"])


@pytest.mark.slow
def test_a_bundle_carries_adapters_by_name(files, tiny_folder, tmp_path):
    result = call(convert, "carry", tiny_folder, tmp_path / "rich", "--adapters", *files)
    assert result.status == 0, result.err
    assert "adapters     prior, upsampler_0" in call(info, "info", tmp_path / "rich").out
    rich, params = bundle.load(tmp_path / "rich"), bundle.load(tiny_folder).params
    assert_trees_equal(jax.device_get(rich.params), jax.device_get(params))
    with safe_open(tmp_path / "rich" / "adapters" / "upsampler_0.safetensors", "np") as file:
        assert json.loads(file.metadata()["unclip_jax"]) == {
            "part": "upsampler_0",
            "base": identity(params["upsampler_0"]),
        }
    named = adapted(rich, ["prior:0.7"], tmp_path / "rich").params
    assert_trees_equal(named, adapted(rich, [f"{files[0]}:0.7"], tmp_path / "rich").params)
    assert input_files(["prior:0.7"], tmp_path / "rich") == []
    assert input_files([f"{files[0]}:0.7"], tmp_path / "rich") == [files[0]]
    again = call(convert, "carry", tmp_path / "rich", tmp_path / "richer", "--adapters", files[0])
    assert_one_line(again, "carries an adapter called prior; give yours another name")
    # It is part of what the bundle is: altered, it is found out.
    path = tmp_path / "rich" / "adapters" / "prior.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"prior.safetensors is not as it was written"):
        bundle.load(tmp_path / "rich")


@pytest.mark.slow
def test_another_base_is_refused_unless_it_is_left_out(files, tiny_folder, tmp_path):
    system = bundle.load(tiny_folder)
    params = system.params | {"prior": tiny.weights(system.networks["prior"], 55)}
    bundle.save(dataclasses.replace(system, params=params), tmp_path / "other")
    for command in ("merge", "carry"):
        result = call(convert, command, tmp_path / "other", tmp_path / "x", "--adapters", files[0])
        assert_one_line(result, f"{files[0]} adapts a prior whose weights are")
    result = call(convert, "adapter", tiny_folder, tmp_path / "any", "--adapters", f"{files[0]}:0.5", "--any-base")
    assert result.out == f"wrote {tmp_path / 'any' / WEIGHTS}\n"
    (first,), (half,) = (fit(read_adapter(each), system) for each in (files[0], tmp_path / "any"))
    assert_trees_equal(half.params, first.params)
    assert half.base is None
    assert half.scales == pytest.approx({layer: scale / 2 for layer, scale in first.scales.items()})
    assert call(convert, "merge", tmp_path / "other", tmp_path / "y", "--adapters", tmp_path / "any").status == 0


def test_a_merged_clip_is_another(tiny_folder, tmp_path):
    system = bundle.load(tiny_folder)
    own = adapter(system.networks["clip"], "clip")
    save_adapter(tmp_path / "clip.safetensors", own, system.networks["clip"])
    result = call(convert, "merge", tiny_folder, tmp_path / "out", "--adapters", tmp_path / "clip.safetensors")
    assert_one_line(result, "their embeddings mean different things")
    flying = adapted(system, [str(tmp_path / "clip.safetensors")], tiny_folder)
    assert identity(flying.encoder("clip").params) != identity(system.encoder("clip").params)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0, "")),
        ("a.safetensors:0.7", ("a.safetensors", 0.7, "")),
        ("decoder=x/a:-1", ("x/a", -1.0, "decoder")),
        ("upsampler_0.expert_1=a:2", ("a", 2.0, "upsampler_0.expert_1")),
        ("x/y=z.safetensors", ("x/y=z.safetensors", 1.0, "")),
    ],
)
def test_how_a_request_names_them(text, expected, tmp_path):
    use = Use.parse(text, tmp_path)
    assert (str(use.path), use.strength, use.part) == expected


@pytest.mark.parametrize("text", ["a:much", "a:nan", ":0.5", "a:inf", "", "decoder=:1"])
def test_what_no_request_can_mean(text, tmp_path):
    with pytest.raises(UserError, match="give FILE:STRENGTH, such as"):
        Use.parse(text, tmp_path)


def test_a_name_that_holds_a_colon_is_a_name(tmp_path):
    path = tmp_path / "a:0.5"
    path.mkdir()
    assert Use.parse(str(path), tmp_path).path == path
    with pytest.raises(UserError, match=f"names {MAX_ADAPTERS + 1}; give at most"):
        uses(["a"] * (MAX_ADAPTERS + 1), tmp_path)


def test_where_there_is_nothing(tiny_folder, tmp_path):
    result = call(convert, "merge", tiny_folder, tmp_path / "x", "--adapters")
    assert result.status == 2
    result = call(convert, "merge", tiny_folder, tmp_path / "x", "--adapters", tmp_path / "a.safetensors")
    assert_one_line(result, f"{tmp_path / 'a.safetensors'} is missing")
    assert not (tmp_path / "x").exists()
