"""Types of ours, and the legend of the names of dimensions in annotations.

    b  rows of a batch      n  rows of a request, tokens      h, w, c  height, width, channels of an image; H, W larger
    d  width                q, s  queries, and the keys they look at     k  heads, candidates of a row
    t  rows of a process    s  steps of a sampler             dims  all but the first

A name that stands alone is written with a leading space, `Float[Array, " b"]`. The annotations cost nothing in
production; the tests check them with beartype.
"""

from typing import Any

Params = dict[str, Any]
"""A network's parameters: nested dicts of float arrays, as `init` makes them."""
