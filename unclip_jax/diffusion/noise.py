"""Where a sampler's noise comes from: a key, or a tape recorded earlier (perhaps by another framework).

With `KeyNoise` each example has a stream of its own,

(1)  x_T   ~ N(0, I) from fold_in(fold_in(key, index), 0)
(2)  z_i   ~ N(0, I) from fold_in(fold_in(key, index), 1 + i)

so what an example gets depends on its index alone, not on the batch or the device it is drawn in.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@runtime_checkable
class NoiseSource(Protocol):
    """Standard normal noise for one run of a sampler; a pytree."""

    def check(self, shape: tuple[int, ...], num_steps: int) -> None:
        """Raise ValueError unless x_T of this shape and the noise of `num_steps` steps can be had."""
        ...

    def initial(self, shape: tuple[int, ...]) -> Float[Array, " b *dims"]:
        """Return x_T."""
        ...

    def step(self, i: int | Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, " b *dims"]:
        """Return the noise of the i-th step in sampling order, from 0; i may be traced."""
        ...


class KeyNoise(NamedTuple):
    """Noise from a key (eq. 1, 2), of a kind whose draws under vmap depend on their own key alone: threefry,
    the default, and not rbg.

    Attributes:
        indices: which example each row is, [b]; use the position in the whole request, not in the batch.
    """

    key: Key[Array, ""]
    indices: Int[Array, " b"]

    def check(self, shape: tuple[int, ...], num_steps: int) -> None:
        del num_steps
        if self.indices.shape != shape[:1]:
            raise ValueError(f"noise needs one index per example, {shape[0]}; got {self.indices.shape}")

    def initial(self, shape: tuple[int, ...]) -> Float[Array, " b *dims"]:
        return self._draw(0, shape)

    def step(self, i: int | Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, " b *dims"]:
        return self._draw(1 + i, shape)

    def _draw(self, stream: int | Array, shape: tuple[int, ...]) -> Array:
        def one(index: Array) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(self.key, index), stream)
            return jax.random.normal(key, shape[1:], jnp.float32)

        # The barrier keeps the compiler from fusing the draw into the sampler's arithmetic, where it may round
        # otherwise: a recorded tape then replays these very bits.
        return jax.lax.optimization_barrier(jax.vmap(one)(self.indices))


class TapeNoise(NamedTuple):
    """Noise replayed from arrays.

    Attributes:
        x_T: [b ...].
        steps: [S b ...], in sampling order; the last has no effect, since a sampler's last step adds no noise.
    """

    x_T: Float[Array, " b *dims"]
    steps: Float[Array, " s b *dims"]

    def check(self, shape: tuple[int, ...], num_steps: int) -> None:
        if self.x_T.shape != shape:
            raise ValueError(f"the tape's x_T has shape {self.x_T.shape}, but the sample has shape {shape}")
        needed = (num_steps, *shape)
        if num_steps and self.steps.shape != needed:
            raise ValueError(f"the tape's steps have shape {self.steps.shape}; this sampler needs {needed}")

    def initial(self, shape: tuple[int, ...]) -> Float[Array, " b *dims"]:
        del shape
        return self.x_T

    def step(self, i: int | Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, " b *dims"]:
        del shape
        return self.steps[i]

    @classmethod
    def record(cls, source: NoiseSource, shape: tuple[int, ...], num_steps: int) -> "TapeNoise":
        """Record what `source` would give a sampler of `num_steps` steps."""
        steps = jax.vmap(lambda i: source.step(i, shape))(jnp.arange(num_steps))
        return cls(x_T=source.initial(shape), steps=steps)
