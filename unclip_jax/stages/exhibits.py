"""What a stage in training has to show: arrays that a program makes, and how they are drawn for a person.

An exhibit is a pytree, so that what makes it may be compiled; its words are static.
"""

from collections.abc import Sequence

import numpy as np
from flax import struct
from jaxtyping import PyTree, UInt8

from unclip_jax.images.heat_map import heat_map
from unclip_jax.images.labels import captioned_rows
from unclip_jax.images.pixels import to_uint8


class Exhibit:
    """Something to show of b examples."""

    def draw(self, captions: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
        """Draw it, once it is on the host, with the captions of the examples ("" where there are none)."""
        raise NotImplementedError


@struct.dataclass
class Pictures(Exhibit):
    """Rows of pictures, each with its name, one above the other; a column is an example."""

    rows: PyTree
    """A tuple of [b h w 3] in [-1, 1]."""
    names: tuple[str, ...] = struct.field(pytree_node=False)

    def draw(self, captions: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
        return captioned_rows([to_uint8(row) for row in self.rows], self.names, captions)


@struct.dataclass
class Cosines(Exhibit):
    """Cosines of what was made of captions (rows) with what was made of pictures (columns)."""

    values: PyTree
    """[b b]"""
    pictures: PyTree
    """[b h w 3] in [-1, 1]; None where the batch brings none."""
    rows: str = struct.field(pytree_node=False)
    """What a row is."""
    columns: str = struct.field(pytree_node=False)
    """What a column is."""

    def draw(self, captions: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
        pictures = None if self.pictures is None else to_uint8(self.pictures)
        return heat_map(np.asarray(self.values), captions, pictures, rows=self.rows, columns=self.columns)
