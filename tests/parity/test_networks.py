"""Every network's forward against the PyTorch original: same weights, same inputs, float32."""

import jax.numpy as jnp
import pytest
import torch

from tests.parity.compare import CAPTIONS, relative_error, to_ours, to_torch
from tests.parity.weights import draw
from unclip_jax.models.cond import UNetCond

TOLERANCE = 1e-5
T = torch.tensor([5, 700])
TIME = jnp.asarray([5.0, 700.0])


@pytest.fixture(scope="module")
def captions(pipeline, system):
    """The captions as either side encodes them."""
    theirs = pipeline.tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ours = system.tokenizer.encode(CAPTIONS, 77)
    assert (ours.tokens == theirs.input_ids.numpy()).all()
    assert (ours.mask == theirs.attention_mask.numpy().astype(bool)).all()
    with torch.no_grad():
        encoded = pipeline.text_encoder(theirs.input_ids)
    rows = {"tokens": jnp.asarray(ours.tokens), "mask": jnp.asarray(ours.mask)}
    return rows, encoded, theirs.attention_mask.bool()


def test_text_encoder(system, captions):
    rows, encoded, _ = captions
    text = system.encoder("clip").encode_text(rows["tokens"])
    assert relative_error(text.z_t, encoded.text_embeds) < TOLERANCE
    assert relative_error(text.hidden, encoded.last_hidden_state) < TOLERANCE


def test_prior(pipeline, system, captions):
    rows, encoded, their_mask = captions
    stage, weights = system.stage("prior"), system.weights("prior")
    x_t = torch.from_numpy(draw("x_t", (2, *stage.network.sample_shape)))
    with torch.no_grad():
        theirs = pipeline.prior(x_t, T, encoded.text_embeds, encoded.last_hidden_state, their_mask)
    cond = stage.condition(weights, rows, 2)
    ours = stage.network.apply(weights.params, to_ours(x_t), TIME, cond)
    assert relative_error(ours, theirs.predicted_image_embedding) < TOLERANCE


@pytest.mark.parametrize("guided", [False, True])
def test_text_proj_and_decoder(pipeline, system, captions, guided):
    rows, encoded, their_mask = captions
    stage, weights = system.stage("decoder"), system.weights("decoder")
    z_i = torch.from_numpy(draw("z_i", (2, stage.network.embed_dim)))
    x_t = to_torch(draw("pixels", (2, 16, 16, 3)))
    embeds, hidden, t, time = encoded.text_embeds, encoded.last_hidden_state, T, TIME
    cond = stage.condition(weights, {"z_i": to_ours(z_i), **rows}, 2)
    if guided:
        # The unconditional half: no caption is the empty caption, no image a learned embedding.
        empty = pipeline.tokenizer([""] * 2, padding="max_length", max_length=77, return_tensors="pt")
        with torch.no_grad():
            nothing = pipeline.text_encoder(empty.input_ids)
        embeds = torch.cat([nothing.text_embeds, embeds])
        hidden = torch.cat([nothing.last_hidden_state, hidden])
        their_mask = torch.cat([empty.attention_mask.bool(), their_mask])
        x_t, t, time = torch.cat([x_t] * 2), torch.cat([T] * 2), jnp.concatenate([TIME] * 2)
        both = [cond.null(), cond]
        cond = type(cond)(
            **{
                name: value if value is None else jnp.concatenate([getattr(each, name) for each in both])
                for name, value in vars(cond).items()
                if name != "empty"
            },
            empty=type(cond.empty)(**{name: jnp.concatenate([value] * 2) for name, value in vars(cond.empty).items()}),
        )
    with torch.no_grad():
        context, added = pipeline.text_proj(
            image_embeddings=z_i,
            prompt_embeds=embeds,
            text_encoder_hidden_states=hidden,
            do_classifier_free_guidance=guided,
        )
        context_mask = torch.nn.functional.pad(their_mask, (4, 0), value=True)
        theirs = pipeline.decoder(
            x_t, t, encoder_hidden_states=context, class_labels=added, attention_mask=context_mask
        ).sample
    ours = stage.network.apply(weights.params, to_ours(x_t), time, cond)
    assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize(("name", "expert"), [("super_res_first", "expert_1"), ("super_res_last", "expert_0")])
def test_super_resolution(pipeline, system, name, expert):
    network, params = system.stage("upsampler_0").network.expert, system.params["upsampler_0"][expert]
    x_t, low_res = (to_torch(draw(each, (2, 32, 32, 3))) for each in ("x_t", "low_res"))
    with torch.no_grad():
        theirs = getattr(pipeline, name)(torch.cat([x_t, low_res], dim=1), T).sample
    cond = UNetCond(low_res=to_ours(low_res))
    ours = network.apply(params, to_ours(x_t), TIME, cond)
    assert relative_error(ours, theirs) < TOLERANCE
