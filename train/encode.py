"""Encode images with a CLIP once, into a store of embeddings that priors and decoders are trained from.

python -m train.encode SOURCE --clip BUNDLE_OR_WORKDIR --out STORE [--dtype float32] [--text] [--data.field value]

SOURCE is what --data.source of a training run takes. Started again after it was killed, it carries on. On several hosts
start it on each, with one folder for all of them.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.data.config import DataConfig
from unclip_jax.parallel import distributed
from unclip_jax.parallel.distributed import ClusterSpec
from unclip_jax.training.encoding import EncodeConfig, encode

NO_USE = ("source", "embeddings", "store_clip", "store_root", "batch_size", "flip", "seed")
"""Fields of the data that matter to training alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Encode images with a CLIP, once."""

    source: Annotated[str, tyro.conf.Positional]
    """What to encode, as --data.source of a training run has it."""
    clip: str
    """The CLIP: the workdir of a CLIP run, or a bundle."""
    out: Path
    """Folder of the store, shared by all hosts."""
    dtype: Literal["float16", "float32"] = "float16"
    """What embeddings are stored as. float16 rounds each number by at most 0.05 % of itself."""
    text: bool = False
    """Store z_t of each record's first caption as well."""
    captions: bool = True
    """Whether the source has captions; they are stored beside the embeddings."""
    batch_size: int = 64
    """Images that one device encodes at once."""
    shard_records: int = 10_000
    """Records of the source that make a shard: what a killed run loses at most."""
    take_over: bool = False
    """Take the store from another process that is writing it, which then stops."""
    data: DataConfig = DataConfig(batch_size=1)
    """How the source is read; what concerns training alone is refused."""
    cluster: ClusterSpec = ClusterSpec()
    """The cluster, where it is not detected."""


def main() -> None:
    """Encode, or carry on."""
    options: Options = command_line.parse(Options, description=__doc__)
    default = DataConfig(batch_size=1)
    for name in NO_USE:
        if getattr(options.data, name) != getattr(default, name):
            word = name.replace("_", "-")
            raise UserError(f"--data.{word} has no use here, each record is encoded once as it is; leave it out")
    compilation_cache.enable()
    distributed.start(options.cluster)
    given = {name: value for name, value in vars(options).items() if name not in ("source", "cluster", "data")}
    encode(EncodeConfig(data=dataclasses.replace(options.data, source=options.source), **given))


if __name__ == "__main__":
    run_cli(main)
