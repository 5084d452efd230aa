"""Our forwards against what PyTorch's made of the same weights and inputs, which tests/golden/parity keeps.

`python -m tests.parity.make_goldens` writes those files, where torch is installed.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import inputs
from tests.parity.weights import weight
from unclip_jax.convert import diffusers_nets as nets
from unclip_jax.convert import hf_clip
from unclip_jax.convert.mapping import wanted
from unclip_jax.models.base import Network
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.cond import EncodedCaption, PriorCond, UNetCond
from unclip_jax.models.parameters import unflatten

TOLERANCE = 1e-5
KEEPS = jnp.zeros(2, bool)
CAPTION = {name: jnp.asarray(getattr(inputs, name)) for name in ("z_t", "hidden", "mask")}
TIME = jnp.asarray(inputs.T, jnp.float32)


def golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(inputs.GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return json.loads(str(file["config"])), {key: file[key] for key in file.files if key != "config"}


def params(network: Network, *sources) -> dict:
    """The weights that PyTorch's side had, by our names: of each (component, entries)."""
    shapes, found = wanted(network), {}
    for component, entries in sources:
        for entry in entries:
            theirs = entry.layout.to_theirs(np.broadcast_to(np.float32(0), shapes[entry.ours])).shape
            found[entry.ours] = jnp.asarray(entry.layout.to_ours(weight(f"{component}.{entry.theirs}", theirs)))
    assert set(found) == set(shapes)
    return unflatten(found)


def assert_close(ours: jax.Array, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() < TOLERANCE * np.abs(theirs).max()


@pytest.mark.slow
def test_prior():
    config, expected = golden("prior")
    spec = nets.prior_spec(config, "golden")
    weights = params(spec, ("prior", nets.prior_names(spec)))
    cond = PriorCond(**CAPTION, drop_text=KEEPS, empty=EncodedCaption(**CAPTION))
    assert_close(spec.apply(weights, jnp.asarray(inputs.x_prior), TIME, cond), expected["output"])


@pytest.mark.slow
def test_decoder():
    config, expected = golden("decoder")
    spec = nets.decoder_spec(config["decoder"], "golden", config["text_proj"], "golden", inputs.EMBED_DIM)
    sources = ("decoder", nets.unet_names(spec)), ("text_proj", nets.text_proj_names(spec))
    weights = params(spec, *sources)
    cond = UNetCond(
        z_i=jnp.asarray(inputs.z_i), drop_z_i=KEEPS, drop_text=KEEPS, empty=EncodedCaption(**CAPTION), **CAPTION
    )
    assert_close(spec.apply(weights, jnp.asarray(inputs.x_decoder), TIME, cond), expected["output"])


@pytest.mark.slow
def test_super_resolution():
    config, expected = golden("super_res_first")
    spec = nets.upsampler_spec(config, "golden")
    weights = params(spec, ("super_res_first", nets.unet_names(spec)))
    cond = UNetCond(low_res=jnp.asarray(inputs.low_res))
    assert_close(spec.apply(weights, jnp.asarray(inputs.x_upsampler), TIME, cond), expected["output"])


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_tower(activation):
    config, expected = golden(f"text_{activation}")
    text = hf_clip.text_spec(config, "golden", config["vocab_size"] - 1)
    spec = CLIPSpec(embed_dim=inputs.EMBED_DIM, text=text, contrastive=False, activation=activation, embedding="raw")
    weights = params(spec, ("text_encoder", hf_clip.text_names(spec)))
    text = spec.encode_text(weights, jnp.asarray(inputs.tokens(text.vocab_size)))
    assert_close(text.z_t, expected["z_t"])
    assert_close(text.hidden, expected["hidden"])


@pytest.mark.slow
def test_image_tower():
    config, expected = golden("vision")
    spec = CLIPSpec(
        embed_dim=inputs.EMBED_DIM,
        vision=hf_clip.vision_spec(config, "golden"),
        contrastive=False,
        activation="quick_gelu",
        embedding="raw",
    )
    weights = params(spec, ("image_encoder", hf_clip.vision_names(spec)))
    assert_close(spec.encode_image(weights, jnp.asarray(inputs.images)), expected["z_i"])
