import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.editing.probing import fit_basis, project


def test_probing_is_coarse_to_fine():
    rng = np.random.default_rng(0)
    z_i = np.float32(rng.normal(size=(50, 8)) * np.array([5, 3, 2, 1, 0.5, 0.2, 0.1, 0.1]))
    z_i = jnp.asarray(z_i / np.linalg.norm(z_i, axis=1, keepdims=True))
    basis = fit_basis(np.asarray(z_i))
    errors = [float(np.square(project(z_i, basis, k) - z_i).mean()) for k in range(9)]
    assert np.all(np.diff(errors) <= 1e-9) and errors[-1] < 1e-12 < errors[0]
    np.testing.assert_allclose(np.linalg.norm(project(z_i, basis, 3), axis=1), 1, rtol=1e-5)
    with pytest.raises(UserError, match="has 8 components; ask for 0 to that many, not 9"):
        project(z_i, basis, 9)
    with pytest.raises(UserError, match="3 embeddings of 8 numbers have 2 components"):
        fit_basis(np.asarray(z_i[:3]), 5)
    assert fit_basis(np.asarray(z_i), 3).components.shape == (3, 8)


def test_copies_have_no_components_of_their_own():
    z_i = np.random.default_rng(0).standard_normal((4, 8), np.float32)
    copies = np.tile(z_i, (16, 1)) * np.float32(1 + 1e-7)
    assert fit_basis(copies).components.shape == (3, 8)
    with pytest.raises(UserError, match="64 embeddings of 8 numbers have 3 components; give more images, or ask less"):
        fit_basis(copies, 4)
    with pytest.raises(UserError, match="64 embeddings of 8 numbers have 0 components; give more images"):
        fit_basis(np.tile(z_i[:1], (64, 1)))
