"""The optimiser's moments in fewer bits between two steps; a step itself computes in float32.

A number m becomes one of the levels L(k) around it, by chance and right on average:

    L(k) <= m <= L(k + 1),   P(k + 1) = (m - L(k)) / (L(k + 1) - L(k)),   so E[stored] = m             (1)

To the nearest level would be wrong: with beta2 = 0.999 a step moves the second moment by a thousandth of what is new
in it, a quarter of the distance of two bfloat16 numbers at the most, so that it would never come down. The levels are

    bfloat16:  all numbers of 8 significant bits                                                       (2)
    int8:      L(k) = (|k| / n)^p sign(k) max_row |m|                                                  (3)

with one float32 maximum for each row (the last axis): n = 127 and p = 4 for the first moment, n = 255 and p = 8 for
the second, which goes with the square of the gradient. Powers spread the levels evenly over magnitudes (Dettmers et
al., 2110.02861, have a table for it), since gradients in one row differ by more than 255 even steps can say. Vectors
(norms, biases) stay float32 in int8's state: they are few.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer, PyTree, UInt16

Moments = Literal["float32", "bfloat16", "int8"]

_SEED = 27


@dataclasses.dataclass(frozen=True)
class Levels:
    """Equation (3)."""

    signed: bool
    roots: int
    """p = 2^roots: so many square roots of |m| / max are linear in k."""

    @property
    def count(self) -> int:
        """n."""
        return 127 if self.signed else 255

    def __call__(self, k: Array) -> Array:
        """Return L(k) / max for k >= 0."""
        level = k / self.count
        for _ in range(self.roots):
            level = level * level
        return level

    def below(self, share: Array) -> Array:
        """Return the k for which L(k) / max <= share < L(k + 1) / max, up to rounding, which equation (1) corrects."""
        for _ in range(self.roots):
            share = jnp.sqrt(share)
        return jnp.floor(share * self.count)


LEVELS = {"mu": Levels(signed=True, roots=2), "nu": Levels(signed=False, roots=3)}
"""Of the moments by the names that optax gives them."""


class Quantized(NamedTuple):
    """The state of an optimiser with its moments in fewer bits, and the maxima of the rows where they need them."""

    inner: PyTree
    scales: dict[str, PyTree]


def to_bfloat16(x: Float[Array, "*n"], chance: UInt16[Array, "*n"]) -> Float[Array, "*n"]:
    """Compute equation (1) with (2): the upper half of a float32 is a bfloat16; `chance` and the lower half carry into
    it."""
    upper = (jax.lax.bitcast_convert_type(x, jnp.uint32) + chance) >> 16
    return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)


def to_int8(
    x: Float[Array, "*n d"], chance: UInt16[Array, "*n d"], levels: Levels
) -> tuple[Integer[Array, "*n d"], Float[Array, "*n 1"]]:
    """Compute equation (1) with (3): k, and the maxima of the rows."""
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    share = jnp.abs(x) / jnp.where(scale > 0, scale, 1.0)
    k = levels.below(share)
    low, high = levels(k), levels(k + 1)
    k = k + ((chance + 0.5) / 2**16 < (share - low) / (high - low))
    k = jnp.minimum(k, levels.count)
    if levels.signed:
        return (jnp.sign(x) * k).astype(jnp.int8), scale
    # The first moment is divided by the root of this one, which therefore does not vanish by chance.
    return jnp.maximum(k, share > 0).astype(jnp.uint8), scale


def from_int8(k: Integer[Array, "*n d"], scale: Float[Array, "*n 1"], levels: Levels) -> Float[Array, "*n d"]:
    """Compute equation (3)."""
    k = k.astype(jnp.float32)
    return jnp.sign(k) * levels(jnp.abs(k)) * scale


def quantize_moments(inner: optax.GradientTransformation, precision: Moments) -> optax.GradientTransformation:
    """Return `inner`, whose state has a `count` and moments `mu` and perhaps `nu`, with these in fewer bits between
    steps.

    What chance decides depends on the count and the place in the tree alone: it is the same on any number of devices,
    and the same again after a run has resumed.
    """
    if precision == "float32":
        return inner

    def pack(x: Array, chance: Array, levels: Levels) -> tuple[Array, PyTree]:
        if precision == "bfloat16":
            return to_bfloat16(x, chance), optax.MaskedNode()
        return to_int8(x, chance, levels) if x.ndim > 1 else (x, optax.MaskedNode())

    def packed(state: PyTree) -> Quantized:
        key = jax.random.fold_in(jax.random.key(_SEED), state.count)
        # One draw serves both moments: random bits are dear to compile, for each parameter anew.
        shapes = [x.shape for x in jax.tree.leaves(state.mu)]
        draws = [jax.random.bits(jax.random.fold_in(key, i), shape, jnp.uint32) for i, shape in enumerate(shapes)]
        moments, scales = {}, {}
        for half, name in enumerate(_moments(state)):
            leaves, tree = jax.tree.flatten(getattr(state, name))
            chances = [(bits >> 16 * half).astype(jnp.uint16) for bits in draws]
            pairs = [pack(x, chance, LEVELS[name]) for x, chance in zip(leaves, chances, strict=True)]
            moments[name], scales[name] = (jax.tree.unflatten(tree, [pair[i] for pair in pairs]) for i in (0, 1))
        return Quantized(state._replace(**moments), scales)

    def unpacked(kept: Quantized) -> PyTree:
        def moment(name: str) -> PyTree:
            def unpack(x: Array, scale: Array | optax.MaskedNode) -> Array:
                if isinstance(scale, optax.MaskedNode):
                    return x.astype(jnp.float32)
                return from_int8(x, scale, LEVELS[name])

            return jax.tree.map(unpack, getattr(kept.inner, name), kept.scales[name])

        return kept.inner._replace(**{name: moment(name) for name in _moments(kept.inner)})

    def init(params: PyTree) -> Quantized:
        return packed(inner.init(params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, Quantized]:
        updates, after = inner.update(updates, unpacked(state), params)
        return updates, packed(after)

    return optax.GradientTransformation(init, update)


def _moments(state: PyTree) -> list[str]:
    return [name for name in LEVELS if name in state._fields]
