"""Frozen networks, out of the checkpoints of other runs or out of bundles."""

import dataclasses
from collections.abc import Collection

import jax

from unclip_jax.bundle import store
from unclip_jax.core.errors import UserError
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.parameters import flatten, identity, unflatten
from unclip_jax.stages.encoders import Encoder
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.adapting import whole
from unclip_jax.training.belongings import Belongings
from unclip_jax.training.checkpoint import FOLDER, read_params
from unclip_jax.training.workdir import open_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenEncoder:
    """A trained encoder that a later stage is conditioned by; `identity` identifies its embedding space."""

    encoder: Encoder = dataclasses.field(repr=False)
    tokenizer: Tokenizer
    identity: str

    @classmethod
    def load(cls, name: str, where: str, towers: Collection[str] | None = None) -> "FrozenEncoder":
        """Load an encoder from the workdir of a run (its moving average), a bundle's folder or a shipped bundle's name.

        Args:
            towers: of a CLIP those that are needed, see `Stage.towers`; of the others no weights stay in memory. All by
                default; where it is empty, the network is whole and has no weights.

        Raises UserError where there is none.
        """
        word = name.upper() if name == "clip" else name
        if not where:
            raise UserError(f"no {word} given; set --{name} to the workdir of a {word} run or to a bundle")
        if (open_folder(where) / FOLDER).is_dir():
            params, meta = read_params(where)
            if meta["kind"] != name:
                raise UserError(f"{where} is a {meta['kind']} run; set --{name} to the workdir of a {word} run")
            found = Belongings.of_meta(meta, where)
            assert found.stage is not None and found.tokenizer is not None
            params = whole(params, found, where)
            network, own = found.stage.network, identity(params)
            if towers is not None and isinstance(network, CLIPSpec):
                network = network.only(towers) if towers else network
                flat = flatten(params)
                params = unflatten({each: flat[each] for each in flatten(network.abstract_params()) if towers})
            encoder = Encoder(network=network, params=jax.device_put(params))
            return cls(encoder=encoder, tokenizer=found.tokenizer, identity=own)
        known = name in store.load(where, weights=False).encoders
        wanted = towers is None or bool(towers)
        system = store.load(where, parts=(name,) if known else (), weights=wanted, towers=towers if wanted else None)
        if name not in system.encoders or system.tokenizer is None or name not in system.identities:
            raise UserError(f"{where} has no {word} with a tokenizer; choose another bundle")
        return cls(encoder=system.encoders[name], tokenizer=system.tokenizer, identity=system.identities[name])
