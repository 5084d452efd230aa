"""Principal components of CLIP's image embeddings, as a bundle keeps them."""

from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Basis:
    """Principal components of z_i, the strongest first, and the variance along each."""

    mean: Float[Array, " d"]
    components: Float[Array, "k d"]
    variance: Float[Array, " k"]
