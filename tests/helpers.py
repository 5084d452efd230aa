"""What several test modules share."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def count_traces(fn: Callable) -> tuple[Callable, list[int]]:
    """`fn`, and a list that grows by one each time `fn` is traced: a compiled function must trace once."""
    traces: list[int] = []

    @functools.wraps(fn)
    def counted(*args, **kwargs):
        traces.append(len(traces))
        return fn(*args, **kwargs)

    return counted, traces


def assert_trees_equal(a, b) -> None:
    """Same structure, and every leaf the same bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=jax.tree_util.keystr(path))


def rounding(terms: int, size: float, dtype: str = "float32") -> float:
    """How far apart two ways of computing sums of `terms` numbers each may be, `size` being the largest result.

    In which order a sum is taken, in how many lanes and with how many roundings is the processor's and the compiler's
    affair. A rounding moves a partial sum by at most eps / 2 of it, to either side as often, so n of them add up like a
    random walk: to eps / 2 sqrt(n) times the partial sums, and these are about as large as the result. Of thousands of
    numbers the largest deviation is four to five standard deviations of 0.3 eps sqrt(n / 2), and two programs differ by
    sqrt(2) as much: together eps sqrt(n). Four times that leaves room for what later layers make of it, and still lies
    a factor 10^3 below bfloat16's own rounding, and below any wrong factor or misplaced term.

    Along a chain of sums `terms` is the total. Where numbers cancel, or where a function is steep (the sine of an angle
    of 999), `size` is that of what is summed or rounded, not of the small result.
    """
    return 4 * float(jnp.finfo(dtype).eps) * math.sqrt(terms) * size


def assert_close(actual: Any, expected: Any, *, terms: int, size: float | None = None) -> None:
    """The same structure, and no float32 number further from the expected one than rounding explains.

    `size` is the largest number expected, unless told; of a tree, in any of its leaves: a gradient that cancels to
    nothing is a sum of numbers as large as its neighbours.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = jax.tree.leaves(expected)
    size = max(float(np.abs(leaf).max()) for leaf in leaves) if size is None else size
    assert 0 < size < math.inf
    bound = rounding(terms, size)
    for (path, ours), leaf in zip(jax.tree_util.tree_leaves_with_path(actual), leaves, strict=True):
        np.testing.assert_allclose(ours, leaf, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))
