"""Sharding rules that networks have in common, for the mesh (data, fsdp, tensor).

FSDP (ZeRO-3; Rajbhandari et al., 1910.02054): every kernel is split over `fsdp`, with its moving average and moments,
and gathered where it is used. Tensor parallelism (Megatron; Shoeybi et al., 1909.08053): in

(1) y = f(x W_1) W_2

`tensor` splits the columns of W_1 (query, key, value; fc; conv_in) and the rows of W_2 (out; proj; conv_out), so that a
block sums over `tensor` once. What is a vector stays whole.
"""

from jax.sharding import PartitionSpec as P

from unclip_jax.parallel.rules import Rules

COLUMNS, ROWS = P("fsdp", "tensor"), P("tensor", "fsdp")
INPUTS, OUTPUTS = P("fsdp", None), P(None, "fsdp")

BLOCKS: Rules = (
    (r"blocks?(_\d+)?/(attention/(query|key|value)|fc)/kernel$", COLUMNS),
    (r"blocks?(_\d+)?/(attention/(query|key|value)|fc)/bias$", P("tensor")),
    (r"blocks?(_\d+)?/(attention/out|proj)/kernel$", ROWS),
)
"""Transformer blocks, equation (1)."""
EMBEDDINGS: Rules = ((r"(tokens|token_embed)/embedding$", OUTPUTS),)
"""Token embeddings."""
REST: Rules = ((r"kernel$", INPUTS), (r"(bias|scale|positions|class_token|query|null_\w+)$", P()))
"""All other kernels, and what is a vector; the last rules of a network."""
