"""Sharding rules: ordered pairs (regular expression, PartitionSpec) on paths such as `blocks_0/dense/kernel`.

The first rule whose expression is found in the path (`re.search`) decides. A spec names the last dimensions: P("fsdp",
"tensor") says where the inputs and the outputs of a kernel go, be it a dense layer's [in, out], a convolution's
[3, 3, in, out] or a stack of layers [depth, in, out]. Mistakes end in a UserError by name: a rule that matches no
parameter, a parameter that no rule matches, a dimension that its mesh axes do not divide.
"""

import math
import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from unclip_jax.core.errors import UserError

Rules = Sequence[tuple[str, P]]

CATCH_ALL = ".*"
REPLICATE: Rules = ((CATCH_ALL, P()),)


def path_name(path: tuple) -> str:
    """Return the path of a leaf as `a/b/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def match_rules(rules: Rules, params: PyTree, mesh: Mesh) -> PyTree:
    """Return the sharding of every leaf of `params` (arrays or ShapeDtypeStructs), as a tree of NamedSharding.

    Raises UserError for a rule that decides nothing (`CATCH_ALL` may), a leaf without a rule, a spec with
    more entries than the leaf has dimensions, an unknown mesh axis, and a dimension that does not divide.
    """
    unused = {pattern for pattern, _ in rules if pattern != CATCH_ALL}

    def sharding(path, leaf) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                unused.discard(pattern)
                return NamedSharding(mesh, _aligned(name, leaf.shape, pattern, spec, mesh))
        raise UserError(f"no sharding rule means the parameter {name}; add one, or end the rules with {REPLICATE[0]!r}")

    shardings = jax.tree_util.tree_map_with_path(sharding, params)
    if unused:
        raise UserError(
            f"the sharding rule {sorted(unused)[0]!r} decides no parameter; mend its expression or remove it"
        )
    return shardings


def _aligned(name: str, shape: tuple[int, ...], pattern: str, spec: P, mesh: Mesh) -> P:
    """Return `spec` with None for the dimensions before those it names."""
    rule = f"the sharding rule {pattern!r}"
    if len(spec) > len(shape):
        raise UserError(f"{rule} shards {len(spec)} dimensions, but the parameter {name} has shape {shape}")
    if not any(spec):
        return P()
    whole = P(*[None] * (len(shape) - len(spec)), *spec)
    for dim, entry in enumerate(whole):
        axes = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        if unknown := [axis for axis in axes if axis not in mesh.shape]:
            raise UserError(f"{rule} names the mesh axis {unknown[0]!r}; the mesh has {', '.join(mesh.axis_names)}")
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if shape[dim] % parts:
            raise UserError(
                f"{rule} splits dimension {dim} of {name} (shape {shape}) over {parts} devices of mesh axis "
                f"{' and '.join(axes)}, which does not divide it; {math.gcd(shape[dim], parts)} would"
            )
    return whole
