"""Adapters with strengths, merged into a system's weights: once, before these are placed.

(1) W' = W + strength_1 scale_1 A_1 B_1 + strength_2 scale_2 A_2 B_2 + ...            see `unclip_jax.adapters.lora`
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.adapters.lora import Scales, merge
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.parameters import identity
from unclip_jax.systems.system import System


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter of one part of a system.

    Attributes:
        name: what errors call it, its file.
        part: the stage or the encoder.
        params: A and B of each layer that it changes, NumPy's.
        scales: alpha / r of these layers, by path.
        base: the identity of the weights that it was trained for; None where that is not known.
    """

    name: str
    part: str
    params: Params
    scales: Scales
    base: str | None = None


def adapt(system: System, adapters: Sequence[tuple[Adapter, float]]) -> System:
    """Compute equation (1) on the host; parts whose weights were not read are left alone.

    Raises UserError for a strength that is not finite, and for an adapter of other weights.
    """
    params, encoders = dict(system.params), dict(system.encoders)
    for part in dict.fromkeys(adapter.part for adapter, _ in adapters):
        own = params.get(part) if part in system.stages else encoders[part].params
        if not own:
            continue
        merged, found = jax.tree.map(np.asarray, own), ""
        for adapter, strength in adapters:
            if adapter.part != part:
                continue
            if not math.isfinite(strength):
                raise UserError(f"{adapter.name} has strength {strength}; give a number")
            # Of the weights as they are in the bundle, whatever was merged into them before.
            if adapter.base is not None and adapter.base != (found := found or identity(own)):
                raise UserError(
                    f"{adapter.name} adapts a {part} whose weights are {adapter.base[:12]}, but those of bundle "
                    f"{system.name} are {found[:12]}; use the bundle that it was trained on"
                )
            scales = {path: strength * scale for path, scale in adapter.scales.items()}
            merged = merge(merged, adapter.params, scales)
        placed = jax.tree.map(jnp.asarray, merged)
        if part in system.stages:
            params[part] = placed
        else:
            encoders[part] = dataclasses.replace(encoders[part], params=placed)
    return dataclasses.replace(system, params=params, encoders=encoders)
