"""The priors of Kandinsky 2.1 and 2.2 (`KandinskyPriorPipeline`, `KandinskyV22PriorPipeline` of diffusers).

The same network and process as Karlo's, with another CLIP and another width: a caption in, an image embedding out.
"""

import dataclasses
from pathlib import Path

from unclip_jax.bundle.parts import Bundle, identity
from unclip_jax.convert.hf_clip import read_tokenizer
from unclip_jax.convert.karlo import import_prior, import_towers
from unclip_jax.convert.mapping import Account
from unclip_jax.convert.tensor_files import read_json
from unclip_jax.core.errors import UserError

PIPELINES = ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline")


def import_kandinsky_prior(folder: Path, name: str, license: str = "Apache-2.0") -> tuple[Bundle, list[Account]]:
    """A bundle of CLIP and prior from the hub's folder."""
    index = read_json(folder / "model_index.json")
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise UserError(f"{folder / 'model_index.json'}: this is a {pipeline}; known are {' and '.join(PIPELINES)}")
    tokenizer = read_tokenizer(folder / "tokenizer")
    clip, accounts = import_towers(folder, tokenizer.eos_id, "image_processor")
    clip_identity = identity(clip.params)
    prior, settings, stats, more = import_prior(folder / "prior", folder / "scheduler")
    bundle = Bundle(
        name=name,
        license=license,
        description=f"imported from a {pipeline}",
        parts={
            "clip": dataclasses.replace(clip, clip_identity=clip_identity),
            "prior": dataclasses.replace(prior, clip_identity=clip_identity),
        },
        sampling={"prior": settings},
        tokenizer=tokenizer,
        stats=stats,
    )
    return bundle, accounts + more
