"""The caption encoder that a decoder or prior owns: GLIDE's text Transformer (2112.10741, section 2.4)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.models.clip import TextSpec
from unclip_jax.nn.attention import Implementation
from unclip_jax.nn.norms import layer_norm
from unclip_jax.nn.remat import Remat
from unclip_jax.nn.transformer import Transformer


class TextEncoder(nn.Module):
    """Token ids to one feature vector per token; every token attends to every real one, padding is masked."""

    spec: TextSpec
    dtype: jnp.dtype
    remat: Remat = False
    scan: bool = False
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> Float[Array, "b n w"]:
        spec, normal = self.spec, nn.initializers.normal
        x = nn.Embed(spec.vocab_size, spec.width, dtype=self.dtype, embedding_init=normal(0.02), name="tokens")(tokens)
        x = x + self.param("positions", normal(0.01), (spec.context, spec.width)).astype(self.dtype)
        x = Transformer(
            spec.num_layers,
            spec.num_heads,
            spec.mlp_width,
            dtype=self.dtype,
            remat=self.remat,
            scan=self.scan,
            implementation=self.implementation,
            name="transformer",
        )(x, mask[:, None, None, :])
        return layer_norm(self.dtype, "norm")(x)
