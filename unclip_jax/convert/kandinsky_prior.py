"""The priors of Kandinsky 2.1 and 2.2 (`KandinskyPriorPipeline`, `KandinskyV22PriorPipeline` of diffusers).

The same network and process as Karlo's, with another CLIP and another width: a caption in, an image embedding out.
"""

from pathlib import Path

from unclip_jax.convert.hf_clip import read_tokenizer
from unclip_jax.convert.karlo import import_prior, import_towers
from unclip_jax.convert.mapping import Account, imported_system
from unclip_jax.convert.tensor_files import read_json
from unclip_jax.core.errors import UserError
from unclip_jax.systems.system import System

PIPELINES = ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline")


def import_kandinsky_prior(folder: Path, name: str, license: str = "") -> tuple[System, list[Account]]:
    """Import CLIP and prior from the hub's folder."""
    index = read_json(folder / "model_index.json")
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise UserError(f"{folder / 'model_index.json'}: this is a {pipeline}; known are {' and '.join(PIPELINES)}")
    tokenizer = read_tokenizer(folder / "tokenizer")
    clip, accounts = import_towers(folder, tokenizer.eos_id, "image_processor")
    prior, stats, more = import_prior(folder / "prior", folder / "scheduler")
    about = {"name": name, "license": license, "description": f"imported from a {pipeline}"}
    return imported_system(clip, {"prior": prior}, **about, tokenizer=tokenizer, stats=stats), accounts + more
