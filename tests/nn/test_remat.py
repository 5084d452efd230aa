import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unclip_jax
from tests.helpers import assert_close
from tests.models import helpers
from tests.nn import reference
from unclip_jax.core import command_line
from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import PriorCond, PriorSpec
from unclip_jax.models.unet import UNetCond, UNetSpec
from unclip_jax.nn.transformer import Transformer

replace = dataclasses.replace
SETTINGS = (False, "products", True)

RNG = np.random.default_rng(0)
B, N, T = 3, helpers.PRIOR.context, jnp.array([3.0, 400.0, 999.0])
# One level, with attention and without a caption: every kind of block.
UNET = replace(helpers.DECODER, channel_mult=(1,), attention_resolutions=(8,), text=None)
SCANNED = replace(helpers.PRIOR, scan=True)


def normal(*shape):
    return jnp.array(RNG.standard_normal(shape), jnp.float32)


NONE = jnp.zeros(B, bool)
CAPTION = PriorCond(z_t=normal(B, 6), mask=normal(B, N) < 1, drop_text=NONE, hidden=normal(B, N, 8))
TOLD = {
    PriorSpec: (normal(B, 6), CAPTION),
    UNetSpec: (normal(B, 8, 8, 3), UNetCond(z_i=normal(B, 6), drop_z_i=NONE)),
}


def loss(spec, params):
    x_t, cond = TOLD[type(spec)]
    return jnp.sum(jnp.sin(spec.apply(params, x_t, T, cond)))


def gradient(spec):
    params = helpers.params_of(replace(spec, remat=False))
    return reference.quick_jit(jax.grad(lambda params: loss(spec, params)))(params)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [helpers.PRIOR, SCANNED, UNET], ids=["prior", "scanned", "unet"])
def test_gradients_are_the_same(spec):
    expected = gradient(spec)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 0.1
    for remat in ("products", True):
        # What is computed again is fused with other neighbours, and rounds otherwise: some twenty sums of 8 to 72 terms
        # forth and back.
        assert_close(gradient(replace(spec, remat=remat)), expected, terms=500)


def equations(jaxpr):
    """Every equation of a jaxpr, those of its inner ones included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda each: hasattr(each, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def products(spec):
    """How many matrix products with a kernel, products of pairs of matrices, and convolutions the gradient takes."""
    params = helpers.params_of(replace(spec, remat=False))
    counts = Counter()
    for equation in equations(jax.make_jaxpr(jax.grad(lambda params: loss(spec, params)))(params).jaxpr):
        if equation.primitive.name == "dot_general":
            _, (batch, _) = equation.params["dimension_numbers"]
            counts["pairs" if batch else "kernels"] += 1
        counts["convolutions"] += equation.primitive.name == "conv_general_dilated"
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("spec", [helpers.PRIOR, SCANNED, UNET], ids=["prior", "scanned", "unet"])
def test_products_are_computed_once(spec):
    all_kept, kept, none_kept = (products(replace(spec, remat=remat)) for remat in SETTINGS)
    assert kept["kernels"] == all_kept["kernels"] < none_kept["kernels"]
    assert kept["convolutions"] == all_kept["convolutions"] and (spec is not UNET or all_kept["convolutions"])
    assert (spec is UNET) == (kept["convolutions"] < none_kept["convolutions"])
    # Attention's own products are computed again either way.
    assert all_kept["pairs"] < kept["pairs"] == none_kept["pairs"]


def saved(remat, length=5):
    """Numbers that the forward pass of a Transformer leaves to the backward pass, the parameters included."""
    x = jnp.ones((2, length, 8))
    params = reference.init_random(Transformer(2, 2), x)
    run = lambda params: jnp.sum(reference.apply(Transformer(2, 2, remat=remat), params, x))  # noqa: E731
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(run, p)[1], params)))


def test_each_keeps_less():
    everything, some, least = (saved(remat, 40) for remat in SETTINGS)
    assert least < some / 2 < everything / 4


def test_products_never_keep_what_grows_with_the_square_of_the_sequence():
    """Also where a CPU takes one head at a time, whose logits are a matrix like a layer's output."""
    shorter, longer = saved("products", 300), saved("products", 600)
    assert 600 * 600 > 2**18
    assert longer < 2 * shorter


@pytest.mark.parametrize("remat", SETTINGS)
@pytest.mark.parametrize("spec", [helpers.PRIOR, helpers.CLIP, UNET], ids=["prior", "clip", "unet"])
def test_to_json_and_back(spec, remat):
    spec = replace(spec, remat=remat)
    back = from_json(type(spec), json.loads(json.dumps(to_json(spec))))
    assert back == spec and type(back.remat) is type(remat)


def test_reads_what_was_written_before():
    folder = Path(unclip_jax.__file__).parent / "assets" / "demo"
    parts = json.loads((folder / "config.json").read_text("utf-8"))

    def specs(tree):
        if isinstance(tree, dict):
            return [tree] * ("remat" in tree) + [found for value in tree.values() for found in specs(value)]
        return [found for value in tree for found in specs(value)] if isinstance(tree, list) else []

    found = specs(parts)
    assert found and all(spec["remat"] is False for spec in found)
    for spec in found:
        cls = UNetSpec if "channels" in spec else PriorSpec if "z_t_scale" in spec else CLIPSpec
        read = from_json(cls, spec)
        assert read.remat is False and from_json(cls, to_json(read)) == read


def test_refuses_what_is_neither():
    with pytest.raises(UserError, match="config.remat: .*'some'"):
        from_json(PriorSpec, to_json(helpers.PRIOR) | {"remat": "some"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    model: PriorSpec = helpers.PRIOR


@pytest.mark.parametrize(
    ("words", "remat"),
    [([], False), (["--model.remat", "products"], "products"), (["--model.remat", "True"], True)],
)
def test_command_line(monkeypatch, words, remat):
    monkeypatch.setattr(sys, "argv", ["train", *words])
    assert command_line.parse(Form, prog="train", description="").model.remat == remat
