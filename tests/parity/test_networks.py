"""Every network's forward against the PyTorch original: same weights, same inputs, float32."""

import jax.numpy as jnp
import pytest
import torch

from tests.parity.compare import CAPTIONS, relative_error, to_ours, to_torch
from tests.parity.weights import draw
from unclip_jax.conditioning import decoder_cond, prior_cond
from unclip_jax.models import clip, prior, unet
from unclip_jax.models.unet import UNetCond

TOLERANCE = 1e-5
T = torch.tensor([5, 700])


@pytest.fixture(scope="module")
def told(pipeline, bundle):
    """The captions as either side encodes them."""
    theirs = pipeline.tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ours = bundle.tokenizer.encode(CAPTIONS, 77)
    assert (ours.tokens == theirs.input_ids.numpy()).all()
    assert (ours.mask == theirs.attention_mask.numpy().astype(bool)).all()
    with torch.no_grad():
        encoded = pipeline.text_encoder(theirs.input_ids)
    return jnp.asarray(ours.tokens), jnp.asarray(ours.mask), encoded, theirs.attention_mask.bool()


def test_text_encoder(bundle, told):
    tokens, _, encoded, _ = told
    part = bundle.part("clip")
    text = clip.encode_text(part.spec, part.params, tokens)
    assert relative_error(text.z_t, encoded.text_embeds) < TOLERANCE
    assert relative_error(text.hidden, encoded.last_hidden_state) < TOLERANCE


def test_prior(pipeline, bundle, told):
    tokens, mask, encoded, their_mask = told
    part, clip_part = bundle.part("prior"), bundle.part("clip")
    x_t = torch.from_numpy(draw("x_t", (2, part.spec.embed_dim)))
    with torch.no_grad():
        theirs = pipeline.prior(x_t, T, encoded.text_embeds, encoded.last_hidden_state, their_mask)
    cond = prior_cond(part.spec, clip_part.spec, clip_part.params, tokens, mask)
    ours = prior.apply(part.spec, part.params, to_ours(x_t), to_ours(T), cond)
    assert relative_error(ours, theirs.predicted_image_embedding) < TOLERANCE


@pytest.mark.parametrize("guided", [False, True])
def test_text_proj_and_decoder(pipeline, bundle, told, guided):
    tokens, mask, encoded, their_mask = told
    part, clip_part = bundle.part("decoder"), bundle.part("clip")
    z_i = torch.from_numpy(draw("z_i", (2, part.spec.embed_dim)))
    x_t = to_torch(draw("pixels", (2, 16, 16, 3)))
    embeds, hidden, t = encoded.text_embeds, encoded.last_hidden_state, T
    cond = decoder_cond(part.spec, clip_part.spec, clip_part.params, to_ours(z_i), tokens, mask)
    if guided:
        # The unconditional half: no caption is the empty caption, no image a learned embedding.
        empty = pipeline.tokenizer([""] * 2, padding="max_length", max_length=77, return_tensors="pt")
        with torch.no_grad():
            nothing = pipeline.text_encoder(empty.input_ids)
        embeds = torch.cat([nothing.text_embeds, embeds])
        hidden = torch.cat([nothing.last_hidden_state, hidden])
        their_mask = torch.cat([empty.attention_mask.bool(), their_mask])
        x_t, t = torch.cat([x_t] * 2), torch.cat([T] * 2)
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
    ours = unet.apply(part.spec, part.params, to_ours(x_t), to_ours(t), cond)
    assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize(("name", "expert"), [("super_res_first", "expert_1"), ("super_res_last", "expert_0")])
def test_super_resolution(pipeline, bundle, name, expert):
    part = bundle.part("upsampler_0")
    x_t, low_res = (to_torch(draw(each, (2, 32, 32, 3))) for each in ("x_t", "low_res"))
    with torch.no_grad():
        theirs = getattr(pipeline, name)(torch.cat([x_t, low_res], dim=1), T).sample
    cond = UNetCond(low_res=to_ours(low_res))
    ours = unet.apply(part.spec, part.params[expert], to_ours(x_t), to_ours(T), cond)
    assert relative_error(ours, theirs) < TOLERANCE
