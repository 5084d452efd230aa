"""Where each network's parameters live on the mesh (data, fsdp, tensor).

FSDP (ZeRO-3; Rajbhandari et al., 1910.02054): every kernel is split over `fsdp`, with its moving average and moments,
and gathered where it is used. Tensor parallelism (Megatron; Shoeybi et al., 1909.08053): in Transformer blocks, and in
the U-Net's levels that are at least twice as wide as its first, `tensor` splits, in

(1) y = f(x W_1) W_2

the columns of W_1 (query, key, value; fc; conv_in) and the rows of W_2 (out; proj; conv_out), so that a block sums over
`tensor` once. What is a vector stays whole.
"""

from jax.sharding import PartitionSpec as P

from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.parallel.rules import Rules

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
