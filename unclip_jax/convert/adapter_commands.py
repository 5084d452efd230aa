"""What is made of adapters: bundles with them merged in, bundles that carry them, and files as PEFT writes them."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from unclip_jax.bundle import store
from unclip_jax.convert.adapter_files import WEIGHTS
from unclip_jax.convert.adapter_options import adapted, open_adapters, uses
from unclip_jax.convert.adapters import save_adapter
from unclip_jax.core.errors import UserError
from unclip_jax.core.files import check_writable
from unclip_jax.models.parameters import identity
from unclip_jax.systems.adapting import Adapter, adapt
from unclip_jax.systems.system import System


def merged(folder: Path, texts: Sequence[str], name: str) -> System:
    """Return a bundle's system with adapters merged in, to be saved under another name.

    An encoder that one of them changes gets another identity: what was made for the old one no longer fits it.
    """
    system = store.load(folder)
    changed = {adapter.part for adapter, _ in open_adapters(texts, folder, system)}
    system = adapted(system, texts, folder)
    identities = dict(system.identities)
    for part in changed & system.encoders.keys():
        identities[part] = identity(system.encoders[part].params)
    return dataclasses.replace(system, name=name, identities=identities)


def carry(folder: Path, texts: Sequence[str], out: Path) -> str:
    """Write a copy of a bundle that carries adapters, each with the identity of the weights that it was compared with;
    returns its hash. UserError where one is of other weights, or of several parts."""
    system = store.load(folder)
    files: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as draft:
        for number, (use, text) in enumerate(zip(uses(texts, folder), texts, strict=True)):
            adapter = _only(open_adapters([text], folder, system), text)
            adapt(system, [(adapter, 1.0)])
            name = (use.path if use.path.suffix else use.path / use.path.name).stem
            if not name.replace("-", "_").replace(".", "_").isidentifier():
                raise UserError(f"an adapter is called {name!r}; name its file with letters, digits, - . and _")
            if name in files:
                raise UserError(f"two adapters are called {name}; give their files two names")
            whole = (
                system.params if adapter.part in system.stages else {adapter.part: system.encoder(adapter.part).params}
            )
            files[name] = Path(draft) / f"{number}.safetensors"
            own = dataclasses.replace(adapter, base=identity(whole[adapter.part]))
            save_adapter(files[name], own, system.networks[adapter.part])
        return store.add_adapters(folder, out, files)


def rewrite(folder: Path, texts: Sequence[str], out: Path, *, any_base: bool, overwrite: bool) -> Path:
    """Write an adapter as PEFT does, and return the file; its strength becomes part of it."""
    system = store.load(folder, weights=False)
    if len(texts) > 1:
        raise UserError(f"--adapters names {len(texts)}; give one, each is a file of its own")
    adapter = _only(found := open_adapters(texts, folder, system), texts[0])
    strength = found[0][1]
    path = out if out.suffix == ".safetensors" else out / WEIGHTS
    check_writable([path], overwrite=overwrite)
    scales = {layer: strength * scale for layer, scale in adapter.scales.items()}
    own = dataclasses.replace(adapter, scales=scales, base=None if any_base else adapter.base)
    save_adapter(path, own, system.networks[adapter.part])
    return path


def _only(found: Sequence[tuple[Adapter, float]], text: str) -> Adapter:
    if len(found) > 1:
        parts = ", ".join(adapter.part for adapter, _ in found)
        raise UserError(f"{text} adapts {parts}; split it, a file here is of one part")
    return found[0][0]
