"""3x3 convolution with 2.25 times fewer multiplications: Winograd's F(2x2, 3x3) (Lavin & Gray, 1509.09308, 4.1).

The output is made in tiles of 2 x 2 pixels, each from the 4 x 4 pixels around it. In one dimension, for inputs d and
taps g,

(1) V = [d0 - d2, d1 + d2, d2 - d1, d1 - d3]                              B^T d
(2) U = [g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]                  G g
(3) y = [M0 + M1 + M2, M1 - M2 - M3],   M_i = V_i U_i                     A^T M

and in two dimensions the same along rows and columns, so that each of the 16 M_ij is a matrix product over channels.
The factors are 1 and 1/2, so that float32 keeps the accuracy of the plain sum.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def _inputs(d: Array, axis: int) -> tuple[Array, Array, Array, Array]:
    """Compute equation (1) for every pair of neighbours along an axis with one pixel of padding at both ends."""
    pairs = d.shape[axis] // 2 - 1
    even, odd = (lax.slice_in_dim(d, start, None, 2, axis) for start in (0, 1))
    d0, d2 = (lax.slice_in_dim(even, start, start + pairs, 1, axis) for start in (0, 1))
    d1, d3 = (lax.slice_in_dim(odd, start, start + pairs, 1, axis) for start in (0, 1))
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _taps(g: Array) -> tuple[Array, Array, Array, Array]:
    """Compute equation (2) along the first axis."""
    ends = (g[0] + g[2]) / 2
    return g[0], ends + g[1] / 2, ends - g[1] / 2, g[2]


def _outputs(m: Sequence[Array]) -> tuple[Array, Array]:
    """Compute equation (3)."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c e"]) -> Float[Array, "b h w e"]:
    """Convolve with stride 1, zero padding 1; h and w even."""
    b, h, w, c = x.shape
    features = kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = []
    for row, row_taps in zip(_inputs(padded, 1), _taps(kernel), strict=True):
        # 16 products of two matrices run faster here than one of two stacks, though they take longer to compile.
        m = [v.reshape(-1, c) @ u for v, u in zip(_inputs(row, 2), _taps(row_taps), strict=True)]
        rows.append(jnp.stack(_outputs(m), axis=1).reshape(b, h // 2, w // 2, 2, features))
    return jnp.stack(_outputs(rows), axis=2).reshape(b, h, w, features)
