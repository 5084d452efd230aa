"""Frozen networks, out of the checkpoints of other runs or out of bundles."""

import dataclasses

from unclip_jax.bundle import store
from unclip_jax.core.errors import UserError
from unclip_jax.models.parameters import identity
from unclip_jax.stages.encoders import Encoder
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.belongings import Belongings
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
            found = Belongings.of_meta(meta, where)
            assert found.stage is not None and found.tokenizer is not None
            encoder = Encoder(network=found.stage.network, params=params)
            return cls(encoder=encoder, tokenizer=found.tokenizer, identity=identity(params))
        system = store.load(where, parts=(name,) if name in store.load(where, weights=False).encoders else ())
        if name not in system.encoders or system.tokenizer is None or name not in system.identities:
            raise UserError(f"{where} has no {word} with a tokenizer; choose another bundle")
        return cls(encoder=system.encoders[name], tokenizer=system.tokenizer, identity=system.identities[name])
