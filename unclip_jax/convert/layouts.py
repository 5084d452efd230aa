"""The name and layout of each tensor of ours in a PyTorch checkpoint.

(1)  Linear       weight [out in]            <->  kernel [in out]
(2)  Conv2d       weight [out in h w]        <->  kernel [h w in out]
(3)  1x1 Conv2d   weight [out in 1 1]        <->  kernel [in out]
(4)  patches      weight [out 3 p p]         <->  kernel [(p p 3) out]
(5)  fused        rows of q, k and v in one tensor, in thirds or head by head

A layout only moves numbers about, so that what is imported and exported again is the same bit for bit.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Move = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """`to_ours` takes their array; `to_theirs` is its inverse, None where theirs holds more than one of ours."""

    to_ours: Move
    to_theirs: Move | None

    def then(self, other: "Layout") -> "Layout":
        """Chain layouts: this one first, coming from theirs, and then `other`."""
        first, second = self.to_theirs, other.to_theirs
        back = None if first is None or second is None else (lambda x: first(second(x)))
        return Layout(lambda x: other.to_ours(self.to_ours(x)), back)


def _axes(*order: int) -> Layout:
    inverse = np.argsort(order)
    return Layout(lambda x: x.transpose(order), lambda x: x.transpose(inverse))


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = _axes(1, 0)
CONV = _axes(2, 3, 1, 0)
POINTWISE = Layout(lambda x: x.reshape(x.shape[:2]).T, lambda x: x.T[:, :, None, None])


def leading(count: int) -> Layout:
    """Put `count` axes of length 1 in front of theirs."""
    return Layout(lambda x: x.reshape(x.shape[count:]), lambda x: x.reshape((1,) * count + x.shape))


def patches(size: int) -> Layout:
    """Lay out patches by equation (4)."""
    return Layout(
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x: x.reshape(size, size, 3, -1).transpose(3, 2, 0, 1),
    )


def regrouped(outer: int | None, inner: int | None) -> Layout:
    """Reorder rows that theirs counts as [outer inner] and ours as [inner outer]; give one of the two numbers."""

    def swap(x: np.ndarray, first: int | None, second: int | None) -> np.ndarray:
        rest = x.shape[1:]
        return x.reshape(first or -1, second or -1, *rest).swapaxes(0, 1).reshape(x.shape)

    return Layout(lambda x: swap(x, outer, inner), lambda x: swap(x, inner, outer))


def share(index: int, count: int, heads: int = 1) -> Layout:
    """Take, by equation (5), the `index`-th of `count` blocks of rows, found in each of `heads` groups of rows."""

    def pick(x: np.ndarray) -> np.ndarray:
        rest = x.shape[1:]
        groups = x.reshape(heads, count, -1, *rest)
        return groups[:, index].reshape(-1, *rest)

    return Layout(pick, None)


@dataclasses.dataclass(frozen=True)
class Entry:
    """`ours` is a path like a/b/kernel, `theirs` a key of a state dict."""

    ours: str
    theirs: str
    layout: Layout = SAME


def linear(ours: str, theirs: str, *, bias: bool = True, rows: Layout = SAME) -> list[Entry]:
    """Map nn.Dense to torch.nn.Linear; `rows` is applied to theirs first, to weight and bias."""
    entries = [Entry(f"{ours}/kernel", f"{theirs}.weight", rows.then(LINEAR))]
    return [*entries, Entry(f"{ours}/bias", f"{theirs}.bias", rows)] if bias else entries


def conv(ours: str, theirs: str) -> list[Entry]:
    """Map a 3x3 convolution with bias."""
    return [Entry(f"{ours}/kernel", f"{theirs}.weight", CONV), Entry(f"{ours}/bias", f"{theirs}.bias")]


def pointwise(ours: str, theirs: str) -> list[Entry]:
    """Map nn.Dense over channels to a 1x1 convolution."""
    return [Entry(f"{ours}/kernel", f"{theirs}.weight", POINTWISE), Entry(f"{ours}/bias", f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[Entry]:
    """Map a normalisation with scale and bias."""
    return [Entry(f"{ours}/scale", f"{theirs}.weight"), Entry(f"{ours}/bias", f"{theirs}.bias")]


def within(ours: str, theirs: str, entries: Sequence[Entry]) -> list[Entry]:
    """Move entries deeper in both trees: below the path `ours` and the prefix `theirs`."""
    return [
        dataclasses.replace(entry, ours=f"{ours}{entry.ours}", theirs=f"{theirs}{entry.theirs}") for entry in entries
    ]
