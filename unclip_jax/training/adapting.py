"""Runs that train an adapter (`unclip_jax.adapters`) of weights that are there, in place of weights.

A checkpoint of such a run holds the adapter alone, and says what it adapts: where those weights are, and which they are
(their `identity`). Whoever reads the run's weights gets both merged; what lies there now is compared first.
"""

import jax
import numpy as np

from unclip_jax.adapters.lora import layers_of, merge
from unclip_jax.adapters.stage import AdaptedStage
from unclip_jax.bundle import store
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.base import Denoiser, Network
from unclip_jax.models.parameters import identity
from unclip_jax.stages.stage import Stage
from unclip_jax.training.belongings import AdapterOf, Belongings
from unclip_jax.training.checkpoint import read_params
from unclip_jax.training.stage_configs import Config


def trained_stage(config: Config) -> Stage:
    """Return the stage whose parameters a run trains: that of its config, or an adapter of it."""
    stage = config.stage()
    return AdaptedStage(base=stage, lora=config.lora) if config.lora.rank else stage


def whole(params: Params, own: Belongings, where: str) -> Params:
    """Return the weights of a run whose checkpoint holds `params`: of an adapter's run, what it adapts with the adapter
    merged in, as NumPy's arrays.

    Raises UserError where the weights that it adapts are others by now, or not there.
    """
    if own.adapter is None:
        return params
    assert own.stage is not None
    base, found = jax.tree.map(np.asarray, (_base(own.adapter, own.stage.network), params))
    if (there := identity(base)) != own.adapter.base:
        raise UserError(
            f"the weights in {own.adapter.where} are {there[:12]}, but {where} holds an adapter of "
            f"{own.adapter.base[:12]}; put those back"
        )
    return merge(base, found, dict.fromkeys(layers_of(found), own.adapter.lora.scale))


def _base(adapter: AdapterOf, network: Network) -> Params:
    if adapter.part is not None:
        params = bundled(adapter.where, adapter.part)
    else:
        params, meta = read_params(adapter.where)
        params = whole(params, Belongings.of_meta(meta, adapter.where), adapter.where)
    return network.start_from(params) if isinstance(network, Denoiser) else params


def bundled(where: str, part: str) -> Params:
    """Read the weights of an encoder or a stage of a bundle."""
    system = store.load(where, parts=(part,))
    return ({name: encoder.params for name, encoder in system.encoders.items()} | system.params)[part]
