"""What CLIP keeps of an image, from coarse to fine (2204.06125, section 4).

(1) z_i(k) = mean + sum_{j <= k} <z_i - mean, c_j> c_j,   c_1, c_2, ... the principal components of z_i

decoded from one x_T for all k: the first components hold what the picture is of, the later ones its details.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unclip_jax.core.errors import UserError
from unclip_jax.core.npz import read_npz
from unclip_jax.systems.basis import Basis
from unclip_jax.systems.system import System

RANK = 1e-6
"""Least singular value of a component, as a share of the norm of all embeddings; ten times what float32 rounds off."""


def fit_basis(z_i: Float[np.ndarray, "n d"], num_components: int | None = None) -> Basis:
    """Fit the basis of equation (1), in float64; by default all components, min(n - 1, d) where no image is repeated.

    Raises UserError for embeddings that are all the same, or have fewer components than are asked for.
    """
    n, d = z_i.shape
    z = z_i.astype(np.float64)
    mean = z.mean(axis=0)
    _, singular, components = np.linalg.svd(z - mean, full_matrices=False)
    most = int(np.sum(singular[: n - 1] > RANK * np.linalg.norm(z)))
    if most < 1 or (num_components is not None and not 1 <= num_components <= most):
        raise UserError(f"{n} embeddings of {d} numbers have {most} components; give more images, or ask less")
    keep = num_components or most
    return Basis(
        mean=jnp.asarray(mean, jnp.float32),
        components=jnp.asarray(components[:keep], jnp.float32),
        variance=jnp.asarray(np.square(singular[:keep]) / (n - 1), jnp.float32),
    )


def project(z_i: Float[Array, "b d"], basis: Basis, k: int) -> Float[Array, "b d"]:
    """Compute equation (1), rescaled to the length of z_i: a decoder was trained on no other."""
    if not 0 <= k <= len(basis.components):
        raise UserError(f"the basis has {len(basis.components)} components; ask for 0 to that many, not {k}")
    some = basis.components[:k]
    kept = basis.mean + jnp.matmul(jnp.matmul(z_i - basis.mean, some.T, precision="highest"), some, precision="highest")
    length = jnp.linalg.norm(z_i, axis=1, keepdims=True)
    return kept * length / jnp.maximum(jnp.linalg.norm(kept, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)


def basis_of(system: System, path: Path | None = None) -> Basis:
    """Return the components of an .npz, or of the bundle; UserError where there are none."""
    if path is not None:
        width = system.encoder("clip").clip.embed_dim
        shapes = {"mean": (width,), "components": ("k", width), "variance": ("k",)}
        return Basis(**{name: jnp.asarray(array) for name, array in read_npz(path, shapes)[0].items()})
    if system.basis is None:
        make = "python -m train.measure BUNDLE --data FOLDER"
        raise UserError(f"bundle {system.name} has no principal components; run {make}, or give --basis FILE.npz")
    return system.basis
