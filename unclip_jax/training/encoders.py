"""Frozen networks, and weights to start from, out of the checkpoints of other runs or out of bundles."""

import dataclasses

from unclip_jax.bundle import store
from unclip_jax.core.config import from_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.models.base import Denoiser, Network
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.models.parameters import identity
from unclip_jax.stages.encoders import Encoder
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.checkpoint import FOLDER, load_params
from unclip_jax.training.workdir import open_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenEncoder:
    """A trained encoder that a later stage is conditioned by; `identity` identifies its embedding space."""

    encoder: Encoder = dataclasses.field(repr=False)
    tokenizer: Tokenizer
    identity: str

    @classmethod
    def load(cls, name: str, where: str) -> "FrozenEncoder":
        """Load an encoder from the workdir of a run (its moving average), a bundle's folder or a shipped bundle's name.

        Raises UserError where there is none.
        """
        word = name.upper() if name == "clip" else name
        if not where:
            raise UserError(f"no {word} given; set --{name} to the workdir of a {word} run or to a bundle")
        if (open_folder(where) / FOLDER).is_dir():
            params, meta = load_params(where)
            if meta["kind"] != name:
                raise UserError(f"{where} is a {meta['kind']} run; set --{name} to the workdir of a {word} run")
            network = from_json(CLIPSpec, meta["config"]["model"], f"{where}: model")
            tokenizer = from_json(Tokenizer, meta["extra"]["tokenizer"], f"{where}: tokenizer")
            encoder = Encoder(network=network, params=params)
            return cls(encoder=encoder, tokenizer=tokenizer, identity=identity(params))
        system = store.load(where, parts=(name,) if name in store.load(where, weights=False).encoders else ())
        if name not in system.encoders or system.tokenizer is None or name not in system.identities:
            raise UserError(f"{where} has no {word} with a tokenizer; choose another bundle")
        return cls(encoder=system.encoders[name], tokenizer=system.tokenizer, identity=system.identities[name])


def load_start(where: str, kind: str, network: Network) -> Params | None:
    """Load weights to start a run from: of another run's newest checkpoint, or of a bundle's network; None for "".

    Args:
        kind: of the run. Of a bundle's upsamplers the one of the network's size is taken.
        network: converts the weights to fit, where it supports that (`Denoiser.start_from`).

    Raises:
        UserError: there are no such weights.
    """
    if not where:
        return None
    if (open_folder(where) / FOLDER).is_dir():
        params, meta = load_params(where)
        if meta["kind"] != kind:
            raise UserError(f"{where} is a {meta['kind']} run; start from a {kind} run or a bundle")
    else:
        params = _of_bundle(where, kind, network)
    return network.start_from(params) if isinstance(network, Denoiser) else params


def _of_bundle(where: str, kind: str, network: Network) -> Params:
    described = store.load(where, weights=False)
    for name, own in described.networks.items():
        if name.rstrip("0123456789").rstrip("_") != kind or (
            isinstance(network, Denoiser) and not _alike(own, network)
        ):
            continue
        if isinstance(own, TimestepExperts) and not isinstance(network, TimestepExperts):
            raise UserError(f"{name} of bundle {where} is several networks; start from one that is one")
        system = store.load(where, parts=(name,))
        return system.encoders[name].params if name in system.encoders else system.params[name]
    raise UserError(f"bundle {where} has no such {kind}; start from another bundle or run")


def _alike(own: Network, network: Denoiser) -> bool:
    """Return whether networks make samples of one size; others than pictures are refused later, by names of weights."""
    shape = own.sample_shape if isinstance(own, Denoiser) else ()
    return len(network.sample_shape) != 3 or shape == network.sample_shape
