"""Where each network's parameters live on the mesh (data, fsdp, tensor).

FSDP (ZeRO-3; Rajbhandari et al., 1910.02054): every kernel is split over `fsdp`, with its moving average and moments,
and gathered where it is used. Tensor parallelism (Megatron; Shoeybi et al., 1909.08053): in Transformer blocks, and in
the U-Net's levels that are at least twice as wide as its first, `tensor` splits, in

(1) y = f(x W_1) W_2

the columns of W_1 (query, key, value; fc; conv_in) and the rows of W_2 (out; proj; conv_out), so that a block sums over
`tensor` once. What is a vector stays whole.
"""

import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from unclip_jax.bundle.parts import Bundle, Part
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.parallel.distributed import put_whole
from unclip_jax.parallel.layout import AXES
from unclip_jax.parallel.rules import REPLICATE, Rules, match_rules
from unclip_jax.parallel.step import replicated

_COLUMNS, _ROWS = P("fsdp", "tensor"), P("tensor", "fsdp")
_INPUTS, _OUTPUTS = P("fsdp", None), P(None, "fsdp")

_BLOCKS: Rules = (
    (r"blocks?(_\d+)?/(attention/(query|key|value)|fc)/kernel$", _COLUMNS),
    (r"blocks?(_\d+)?/(attention/(query|key|value)|fc)/bias$", P("tensor")),
    (r"blocks?(_\d+)?/(attention/out|proj)/kernel$", _ROWS),
)
_EMBEDDINGS = r"(tokens|token_embed)/embedding$"
_VECTORS = r"(bias|scale|positions|class_token|query|null_\w+)$"


def transformer_rules(spec: CLIPSpec | PriorSpec) -> Rules:
    """Of CLIP's towers, in training or frozen, and of the prior with the caption encoder that it may own."""
    text: Rules = () if spec.text is None else ((_EMBEDDINGS, _OUTPUTS),)
    return (*_BLOCKS, *text, (r"kernel$", _INPUTS), (_VECTORS, P()))


def unet_rules(spec: UNetSpec) -> Rules:
    """Of the decoder and the upsamplers."""
    text: Rules = () if spec.text is None else (*_BLOCKS, (_EMBEDDINGS, _OUTPUTS))
    return (
        # Three channels, or six, divide by nothing.
        (r"^conv_in/kernel$", _OUTPUTS),
        (r"^conv_out/kernel$", _INPUTS),
        *text,
        *_wide_levels(spec),
        (r"kernel$", _INPUTS),
        (_VECTORS, P()),
    )


def _wide_levels(spec: UNetSpec) -> Rules:
    """Equation (1) at the widths at which a level's kernels, and not its pixels, are what is large."""
    wide = [level for level, multiplier in enumerate(spec.channel_mult) if multiplier >= 2 * spec.channel_mult[0]]
    if not wide:
        return ()
    place = rf"^((down|up)_[{''.join(map(str, wide))}]_\w+|middle_\w+)"
    attention: Rules = ()
    if any(spec.image_size // (spec.patch * 2**level) in spec.attention_at for level in wide):
        attention = (
            (rf"{place}/(context_)?(query|key|value)/kernel$", _COLUMNS),
            (rf"{place}/(context_)?(query|key|value)/bias$", P("tensor")),
            (rf"{place}/out/kernel$", _ROWS),
        )
    return ((rf"{place}/conv_in/kernel$", _COLUMNS), (rf"{place}/conv_out/kernel$", _ROWS), *attention)


def place(bundle: Bundle, mesh: Mesh) -> Bundle:
    """`bundle` with its weights on `mesh`: a copy per replica of the axis `data`, each split over the other axes.

    What is drawn with it is drawn by all devices of the mesh. Raises UserError where the mesh does not divide a
    parameter.
    """
    parts = {
        name: dataclasses.replace(part, params=put_whole(part.params, part_shardings(part, mesh)))
        for name, part in bundle.parts.items()
    }
    stats = put_whole(bundle.stats, jax.tree.map(lambda _: replicated(mesh), bundle.stats))
    return dataclasses.replace(bundle, parts=parts, stats=stats)


def mesh_of(params: PyTree) -> Mesh | None:
    """The mesh that parameters were placed on; None for one device."""
    where = getattr(next(iter(jax.tree.leaves(params)), None), "sharding", None)
    if isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh) and where.mesh.axis_names == AXES:
        return where.mesh
    return None


def part_shardings(part: Part, mesh: Mesh) -> PyTree:
    """Where `place` puts the weights of a part, which may be shapes."""

    def shardings(params: PyTree) -> PyTree:
        if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
            return match_rules(REPLICATE, params, mesh)
        rules = unet_rules(part.spec) if isinstance(part.spec, UNetSpec) else transformer_rules(part.spec)
        return match_rules(rules, params, mesh)

    if part.experts:
        return {name: shardings(params) for name, params in part.params.items()}
    return shardings(part.params)
