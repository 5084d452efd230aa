"""Writes tests/golden/parity: what PyTorch's networks make of known inputs with known weights.

    python -m tests.parity.make_goldens        (where torch, diffusers and transformers are installed)

`tests/convert/test_goldens.py` holds our networks against these files where none of the three is.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from tests.parity import inputs, peers
from tests.parity.compare import to_ours, to_torch

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


@torch.no_grad()
def outputs() -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """The config and the outputs of each network."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = peers.karlo(Path(folder))
    t = tensor(inputs.T)
    z_i, z_t, hidden, mask = (tensor(getattr(inputs, name)) for name in ("z_i", "z_t", "hidden", "mask"))
    made: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {}

    output = pipeline.prior(tensor(inputs.x_prior), t, z_t, hidden, mask).predicted_image_embedding
    made["prior"] = dict(pipeline.prior.config), {"output": output}

    context, added = pipeline.text_proj(
        image_embeddings=z_i, prompt_embeds=z_t, text_encoder_hidden_states=hidden, do_classifier_free_guidance=False
    )
    output = pipeline.decoder(
        to_torch(inputs.x_decoder),
        t,
        encoder_hidden_states=context,
        class_labels=added,
        attention_mask=torch.nn.functional.pad(mask, (4, 0), value=True),
    ).sample
    config = {"decoder": dict(pipeline.decoder.config), "text_proj": dict(pipeline.text_proj.config)}
    made["decoder"] = config, {"output": output}

    both = torch.cat([to_torch(inputs.x_upsampler), to_torch(inputs.low_res)], dim=1)
    network = pipeline.super_res_first
    made["super_res_first"] = dict(network.config), {"output": network(both, t).sample}

    for activation in ("quick_gelu", "gelu"):
        config = peers.text_config(len(pipeline.tokenizer), hidden_act=activation)
        tower = peers.fill(CLIPTextModelWithProjection(config), "text_encoder")
        encoded = tower(tensor(inputs.tokens(config.vocab_size)).long())
        outputs = {"z_t": encoded.text_embeds, "hidden": encoded.last_hidden_state}
        made[f"text_{activation}"] = config.to_dict(), outputs

    config = peers.vision_config()
    tower = peers.fill(CLIPVisionModelWithProjection(config), "image_encoder")
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    output = tower((to_torch(inputs.images) / 2 + 0.5 - mean) / std).image_embeds
    made["vision"] = config.to_dict(), {"z_i": output}
    return {
        name: (config, {key: np.asarray(to_ours(value)) for key, value in values.items()})
        for name, (config, values) in made.items()
    }


def plain(config: Any) -> Any:
    """A config as JSON; what JSON cannot say is not needed."""
    return json.loads(json.dumps(config, default=str))


def main() -> None:
    """Writes the files."""
    inputs.GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, (config, arrays) in outputs().items():
        np.savez_compressed(inputs.GOLDEN / f"{name}.npz", config=json.dumps(plain(config)), **arrays)
    print(f"wrote {inputs.GOLDEN}")


if __name__ == "__main__":
    main()
