"""The blocks of a U-Net in the order in which they run: what the module builds and what name maps walk along."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of a U-Net: `name` is its path, `level` 0 the full resolution, `index` its number in level and place.

    A residual block takes `width_in` channels and gives `width`; the other kinds keep theirs. `takes_skip`: its input
    is joined by the newest skip connection; `leaves_skip`: its output becomes one.
    """

    name: str
    place: Literal["down", "middle", "up"]
    kind: Literal["res", "attention", "resample"]
    level: int
    index: int
    width_in: int
    width: int
    takes_skip: bool = False
    leaves_skip: bool = False

    @property
    def changes_width(self) -> bool:
        """Whether the block's own shortcut is a convolution."""
        return self.width_in != self.width


def unet_blocks(widths: Sequence[int], num_blocks: int, attends: Sequence[bool], middle_attends: bool) -> list[Block]:
    """Return the blocks of a U-Net: down through the levels, through the middle, and up again.

    Args:
        widths: channels of each level, the full resolution first.
        num_blocks: residual blocks of a level on the way down; one more on the way up.
        attends: whether attention follows the residual blocks of a level.
        middle_attends: the same of the middle.
    """
    blocks: list[Block] = []
    last = len(widths) - 1

    def add(place, kind, level: int, index: int, width_in: int, width: int, name: str, **skips: bool) -> None:
        numbers = {"level": level, "index": index, "width_in": width_in, "width": width}
        blocks.append(Block(name=name, place=place, kind=kind, **numbers, **skips))

    def unit(place, level: int, index: int, width_in: int, takes_skip: bool = False) -> None:
        """Return a residual block and, where the level attends, attention."""
        name, width, leaves = f"{place}_{level}_{index}", widths[level], place == "down"
        skips = {"takes_skip": takes_skip, "leaves_skip": leaves and not attends[level]}
        add(place, "res", level, index, width_in, width, name, **skips)
        if attends[level]:
            add(place, "attention", level, index, width, width, f"{name}_attention", leaves_skip=leaves)

    current, skips = widths[0], [widths[0]]
    for level, width in enumerate(widths):
        for i in range(num_blocks):
            unit("down", level, i, current)
            current = width
            skips.append(width)
        if level != last:
            add("down", "resample", level, 0, width, width, f"down_{level}_resample", leaves_skip=True)
            skips.append(width)
    add("middle", "res", last, 0, current, current, "middle_0")
    if middle_attends:
        add("middle", "attention", last, 0, current, current, "middle_attention")
    add("middle", "res", last, 1, current, current, "middle_1")
    for level in range(last, -1, -1):
        for i in range(num_blocks + 1):
            unit("up", level, i, current + skips.pop(), takes_skip=True)
            current = widths[level]
        if level:
            add("up", "resample", level, 0, current, current, f"up_{level}_resample")
    return blocks
