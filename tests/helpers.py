"""What several test modules share."""

import functools
from collections.abc import Callable

import jax
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
