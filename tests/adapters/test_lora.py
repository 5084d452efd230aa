import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests import tiny
from tests.helpers import assert_close, assert_trees_equal
from unclip_jax.adapters.lora import LoRAConfig, adapter_rules, kernels_of, layers_of, merge, new_adapter, shapes_of
from unclip_jax.core.errors import UserError
from unclip_jax.models.parameters import flatten
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.rules import match_rules


def filled(shapes, lora, seed=0):
    """An adapter none of whose numbers is zero."""
    rng = np.random.default_rng(seed)
    fresh = jax.eval_shape(lambda key: new_adapter(shapes, lora, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), fresh)


def test_a_dense_kernel_is_changed_by_the_product_of_two_matrices():
    w, a, b = (
        np.random.default_rng(i).normal(size=size).astype(np.float32) for i, size in enumerate([(6, 5), (6, 2), (2, 5)])
    )
    params = {"x": {"fc": {"kernel": w, "bias": np.ones(5)}}, "y": np.ones(3)}
    merged = merge(params, {"x": {"fc": {"lora_A": {"kernel": a}, "lora_B": {"kernel": b}}}}, {"x/fc": 0.5})
    expected = w + 0.5 * np.array([[sum(a[i, r] * b[r, o] for r in range(2)) for o in range(5)] for i in range(6)])
    np.testing.assert_allclose(merged["x"]["fc"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert merged["x"]["fc"]["bias"] is params["x"]["fc"]["bias"]
    assert merged["y"] is params["y"]


def test_a_merged_convolution_is_a_narrow_one_and_then_one_of_1x1():
    x, w, a, b = (
        jnp.asarray(np.random.default_rng(i).normal(size=size), jnp.float32)
        for i, size in enumerate([(2, 6, 6, 4), (3, 3, 4, 5), (3, 3, 4, 2), (1, 1, 2, 5)])
    )

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    merged = merge({"c": {"kernel": w}}, {"c": {"lora_A": {"kernel": a}, "lora_B": {"kernel": b}}}, {"c": 0.25})
    assert_close(conv(x, merged["c"]["kernel"]), conv(x, w) + 0.25 * conv(conv(x, a), b), terms=9 * 4 + 2)


def test_stacked_layers_have_an_adapter_each():
    shapes = {"blocks": {"fc": {"kernel": np.zeros((3, 6, 5), np.float32)}}}
    adapter = filled(shapes, LoRAConfig(rank=2))
    a, b = (adapter["blocks"]["fc"][name]["kernel"] for name in ("lora_A", "lora_B"))
    merged = merge(shapes, adapter, {"blocks/fc": 1.0})["blocks"]["fc"]["kernel"]
    for depth in range(3):
        np.testing.assert_allclose(merged[depth], a[depth] @ b[depth], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_fresh_adapter_changes_nothing_to_the_bit(quick_compile):
    params = jax.device_get(tiny.system().params["decoder"])
    lora = LoRAConfig(rank=3, alpha=7.0)
    fresh = jax.device_get(jax.jit(lambda key: new_adapter(params, lora, key))(jax.random.key(1)))
    assert_trees_equal(merge(params, fresh, dict.fromkeys(layers_of(fresh), 7 / 3)), params)
    assert sorted(layers_of(fresh)) == sorted(kernels_of(params))
    assert all(np.abs(value).max() > 0 for name, value in flatten(fresh).items() if "lora_A" in name)


def test_scale():
    assert LoRAConfig(rank=4).scale == 1
    assert LoRAConfig(rank=4, alpha=2.0).scale == 0.5
    assert LoRAConfig(rank=4, alpha=2.0, rslora=True).scale == 1


def test_targets_choose_layers_by_pattern():
    params = tiny.system().params["decoder"]
    chosen = LoRAConfig(rank=2, targets=("attention/(query|key)$", "^conv_in$")).layers(params)
    assert "conv_in" in chosen
    assert {path.rpartition("/")[2] for path in chosen} == {"conv_in", "query", "key"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": -1}, "lora.rank is -1"),
        ({"rank": 10**6}, "lora.rank is 1000000"),
        ({"alpha": float("nan")}, "lora.alpha is nan"),
        ({"targets": ("(",)}, "no regular expression"),
    ],
)
def test_what_no_adapter_can_be(fields, words):
    with pytest.raises(UserError, match=words):
        LoRAConfig(**{"rank": 2} | fields)


def test_a_target_that_means_nothing_is_refused():
    with pytest.raises(UserError, match="'unheard_of', which means no layer; there are"):
        LoRAConfig(rank=2, targets=("unheard_of",)).layers(tiny.system().params["decoder"])


def test_numbers_of_numpy_stay_numpys():
    shapes = {"fc": {"kernel": np.ones((4, 4), np.float32)}}
    merged = merge(shapes, filled(shapes, LoRAConfig(rank=1)), {"fc": 1.0})
    assert type(merged["fc"]["kernel"]) is np.ndarray
    assert merged["fc"]["kernel"].dtype == np.float32


def test_an_adapter_lies_on_a_mesh_as_its_kernels_do():
    network = tiny.system().stage("prior").network
    lora, shapes = LoRAConfig(rank=3), network.abstract_params()
    mesh = make_mesh(MeshSpec(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    adapter = filled(shapes, lora)
    found = match_rules(adapter_rules(network.sharding_rules(), shapes, lora), adapter, mesh)
    block = found["transformer"]["block_0"]
    assert block["fc"]["lora_A"]["kernel"].spec == P("fsdp", None)
    assert block["fc"]["lora_B"]["kernel"].spec == P(None, "tensor")
    assert block["proj"]["lora_A"]["kernel"].spec == P("tensor", None)
    assert block["proj"]["lora_B"]["kernel"].spec == P(None, "fsdp")


def test_shapes():
    assert shapes_of((6, 5), 2) == ((6, 2), (2, 5))
    assert shapes_of((3, 3, 6, 5), 2) == ((3, 3, 6, 2), (1, 1, 2, 5))
    assert shapes_of((7, 6, 5), 2) == ((7, 6, 2), (7, 2, 5))
