"""What the tests of bundles share."""

import json
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from unclip_jax.core.typing import Params
from unclip_jax.models.base import Network


def weights(network: Network, seed: int) -> Params:
    """Random weights, without compiling the network's own initialisation."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return np.asarray(rng.normal(size=leaf.shape), np.float32)

    return jax.tree.map(draw, network.abstract_params())


def edit(folder: Path, change) -> None:
    """Change config.json on purpose, and so without its digest."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("digest", None)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, part: str, change) -> None:
    path = folder / f"{part}.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    path.unlink()
    safetensors.numpy.save_file(tensors, path)
