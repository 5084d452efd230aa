"""Fifty steps of training from the same weights, on the same batches and noise, in torch and here."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.parity.compare import to_torch
from tests.parity.hybrid_loss import HybridLoss
from unclip_jax.diffusion.losses import loss
from unclip_jax.models.cond import EncodedCaption, PriorCond, UNetCond
from unclip_jax.models.parameters import flatten
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.optim import make_transform

STEPS, BATCH = 50, 4
OPTIM = OptimConfig(learning_rate=3e-4, weight_decay=0.01, clip_norm=None)


def batches(size: tuple[int, ...], embed_dim: int) -> list[dict[str, np.ndarray]]:
    """x_0, noise and timesteps, and a caption as CLIP would give it; t = 0 comes up in the first batch."""
    rng = np.random.default_rng(7)
    made = []
    for step in range(STEPS):
        lengths = rng.integers(2, 12, BATCH)
        t = rng.integers(0, 1000, BATCH)
        made.append(
            {
                "x_0": np.tanh(rng.standard_normal((BATCH, *size), np.float32)),
                "noise": rng.standard_normal((BATCH, *size), np.float32),
                "t": np.where(np.arange(BATCH) == 0, 0, t) if step == 0 else t,
                "z_i": rng.standard_normal((BATCH, embed_dim), np.float32),
                "z_t": rng.standard_normal((BATCH, embed_dim), np.float32),
                "hidden": rng.standard_normal((BATCH, 77, embed_dim), np.float32),
                "mask": np.arange(77) < lengths[:, None],
            }
        )
    return made


def train_theirs(modules: list[torch.nn.Module], loss_fn, data) -> list[float]:
    """torch's AdamW, decaying matrices and filters only."""
    parameters = [value for module in modules for value in module.parameters() if value.requires_grad]
    kernels = {id(value) for value in parameters if value.ndim > 1 and not getattr(value, "plain", False)}
    groups = [
        {"params": [value for value in parameters if (id(value) in kernels) == decays], "weight_decay": rate}
        for decays, rate in ((True, OPTIM.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=OPTIM.learning_rate, betas=(OPTIM.beta1, OPTIM.beta2), eps=OPTIM.eps)
    losses = []
    for batch in data:
        value = loss_fn(batch).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def train_ours(params, loss_fn, data):
    """Our loss, our optimiser."""
    transform = make_transform(OPTIM)

    @jax.jit
    def step(params, state, batch):
        value, grads = jax.value_and_grad(lambda p: loss_fn(p, batch).mean())(params)
        updates, state = transform.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - OPTIM.learning_rate * u, params, updates), state, value

    state, losses = transform.init(params), []
    for batch in data:
        params, state, value = step(params, state, batch)
        losses.append(float(value))
    return params, losses


def compare(losses, expected, params, start, theirs) -> None:
    """Losses at each step; and how far the weights ended apart, beside how far they went."""
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert not np.allclose(losses[0], losses[-1], rtol=1e-2)
    names = flatten(params)
    apart = sum(np.square(np.asarray(names[name]) - theirs[name]).sum() for name in names)
    went = sum(np.square(np.asarray(names[name]) - np.asarray(flatten(start)[name])).sum() for name in names)
    assert np.sqrt(apart / went) < 1e-2


def imported(entries, *modules) -> dict[str, np.ndarray]:
    """Their weights under our names."""
    state = {}
    for module in modules:
        state |= {name: value.detach().numpy() for name, value in module.state_dict().items()}
    return {entry.ours: entry.layout.to_ours(state[entry.theirs]) for entry in entries if entry.theirs in state}


@pytest.mark.slow
def test_prior(pipeline, system):
    from unclip_jax.convert.diffusers_nets import prior_names

    stage, start = system.stage("prior"), system.params["prior"]
    network, tables = copy.deepcopy(pipeline.prior).train(), HybridLoss()
    for name, value in network.named_parameters():
        value.requires_grad_(not name.startswith("clip_"))
        # Theirs has axes of length 1 where ours is a vector, which weight decay leaves alone; positions are no kernel.
        value.plain = name.endswith("embedding")
    data = batches((stage.network.embed_dim,), stage.network.embed_dim)

    def theirs(batch) -> torch.Tensor:
        x_0, noise, t = (torch.from_numpy(batch[name]) for name in ("x_0", "noise", "t"))
        caption = (torch.from_numpy(batch[name]) for name in ("z_t", "hidden", "mask"))
        output = network(tables.noised(x_0, t, noise), t, *caption).predicted_image_embedding
        return (output - x_0).square().mean(dim=1)

    def ours(params, batch):
        caption = {name: batch[name] for name in ("z_t", "hidden", "mask")}
        cond = PriorCond(**caption, drop_text=jnp.zeros(BATCH, bool), empty=EncodedCaption(**caption))
        x_0, t, noise = batch["x_0"], batch["t"], batch["noise"]

        def model_fn(x_t, time, cond):
            return stage.network.apply(params, x_t, time, cond)

        return loss(stage.process.build(), model_fn, x_0, t, noise, cond)[0]

    expected = train_theirs([network], theirs, data)
    params, losses = train_ours(start, ours, data)
    compare(losses, expected, params, start, imported(prior_names(stage.network), network))


@pytest.mark.slow
def test_decoder(pipeline, system):
    from unclip_jax.convert.diffusers_nets import text_proj_names, unet_names

    stage, start = system.stage("decoder"), system.params["decoder"]
    network, projection = (copy.deepcopy(each).train() for each in (pipeline.decoder, pipeline.text_proj))
    hybrid = HybridLoss()
    data = batches((16, 16, 3), stage.network.embed_dim)

    def theirs(batch) -> torch.Tensor:
        x_0, noise, t = (to_torch(batch[name]) for name in ("x_0", "noise", "t"))
        z_i, z_t, hidden, mask = (torch.from_numpy(batch[name]) for name in ("z_i", "z_t", "hidden", "mask"))
        context, added = projection(
            image_embeddings=z_i,
            prompt_embeds=z_t,
            text_encoder_hidden_states=hidden,
            do_classifier_free_guidance=False,
        )
        mask = torch.nn.functional.pad(mask, (4, 0), value=True)
        x_t = hybrid.noised(x_0, t, noise)
        output = network(x_t, t, encoder_hidden_states=context, class_labels=added, attention_mask=mask).sample
        return hybrid(output, x_0, t, noise)

    def ours(params, batch):
        caption = {name: batch[name] for name in ("z_t", "hidden", "mask")}
        nothing = jnp.zeros(BATCH, bool)
        empty = EncodedCaption(**caption)
        cond = UNetCond(z_i=batch["z_i"], drop_z_i=nothing, drop_text=nothing, empty=empty, **caption)
        x_0, t, noise = batch["x_0"], batch["t"], batch["noise"]

        def model_fn(x_t, time, cond):
            return stage.network.apply(params, x_t, time, cond)

        return loss(stage.process.build(), model_fn, x_0, t, noise, cond)[0]

    expected = train_theirs([network, projection], theirs, data)
    params, losses = train_ours(start, ours, data)
    entries = unet_names(stage.network) + text_proj_names(stage.network)
    compare(losses, expected, params, start, imported(entries, network, projection))
