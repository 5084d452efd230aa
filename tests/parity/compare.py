"""What every comparison needs: tensors to arrays and back, errors, and one noise for both sides."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax.numpy as jnp
import numpy as np
import torch

from unclip_jax.diffusion.noise import TapeNoise

CAPTIONS = ["a red circle above the blue square", "photo of green"]


def to_torch(array) -> torch.Tensor:
    """NHWC to NCHW; anything else as it is."""
    array = np.asarray(array)
    return torch.from_numpy(np.array(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array))


def to_ours(tensor: torch.Tensor) -> jnp.ndarray:
    """NCHW to NHWC; anything else as it is."""
    array = tensor.detach().numpy()
    return jnp.asarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)


def relative_error(ours, theirs: torch.Tensor) -> float:
    """Largest difference over the largest number."""
    reference = np.asarray(to_ours(theirs))
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


def tape(seed: int, shape: tuple[int, ...], steps: int) -> TapeNoise:
    """Noise for a sampler of ours."""
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((steps + 1, *shape), np.float32)
    return TapeNoise(x_T=jnp.asarray(draws[0]), steps=jnp.asarray(draws[1:]))


@contextlib.contextmanager
def scheduler_noise(*tapes: TapeNoise) -> Iterator[None]:
    """Makes `UnCLIPScheduler.step` draw from tapes, one after another; the last step of each draws nothing."""
    queue = [to_torch(noise) for each in tapes for noise in each.steps[:-1]]

    def draw(shape, **_) -> torch.Tensor:
        noise = queue.pop(0)
        assert tuple(shape) == tuple(noise.shape)
        return noise

    with mock.patch("diffusers.schedulers.scheduling_unclip.randn_tensor", draw):
        yield
    assert not queue
